"""3x3 convolution with a gradient that stays fast inside `lax.scan` on the CPU.

XLA:CPU only has a fast kernel for convolutions in canonical form (NHWC inputs, HWIO kernel). The
transposes introduced by differentiating `lax.conv_general_dilated` are rewritten to that form at
top level but not in a loop body, where the backward pass of a convolution then runs tens of times
slower than the forward pass. So the gradient is written here in canonical operations. cuDNN and
TPUs do not need this, so it is optional.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffdepth_jax.ops import platform

Gradient = Literal["auto", "xla", "custom"]


def conv3x3(
    inputs: Float[Array, "b h w i"],
    kernel: Float[Array, "3 3 i o"],
    *,
    gradient: Gradient = "auto",
) -> Float[Array, "b h w o"]:
    """Cross-correlation with a 3x3 kernel, stride 1, zero padding 1, no bias.

    Args:
        inputs: [b, h, w, i].
        kernel: [3, 3, i, o], with the dtype of `inputs`.
        gradient: "xla" differentiates XLA's convolution (any order, forward and reverse mode);
            "custom" uses the canonical form described above (reverse mode, first order); "auto" is
            "custom" if the default backend is the CPU and "xla" otherwise.

    Returns:
        [b, h, w, o]. The values do not depend on `gradient`; gradients agree up to rounding.
    """
    if gradient == "auto":
        gradient = "custom" if platform.current() == "cpu" else "xla"
    if gradient == "custom":
        return _conv3x3_canonical(inputs, kernel)
    if gradient == "xla":
        return _conv3x3(inputs, kernel)
    raise ValueError(f"gradient must be 'auto', 'xla' or 'custom', not {gradient!r}")


def _conv3x3(inputs, kernel):
    return lax.conv_general_dilated(
        inputs, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _conv3x3_canonical(inputs, kernel):
    return _conv3x3(inputs, kernel)


def _forward(inputs, kernel):
    return _conv3x3(inputs, kernel), (inputs, kernel)


def _backward(residuals, cotangent):
    inputs, kernel = residuals
    # Without the barrier, XLA folds the flip and transpose into the convolution, which is then no
    # longer canonical.
    flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2))
    return _conv3x3(cotangent, flipped), _kernel_gradient(inputs, cotangent)


def _kernel_gradient(inputs, cotangent):
    """Correlates the inputs with the cotangent as kernel, with channels as the batch axis.

    Nine matrix products with shifted inputs would give the same. They are a quarter faster with 256
    input and output channels, but slower otherwise, need more memory under rematerialisation, and
    take a third longer to compile.
    """
    inputs = inputs.transpose(3, 1, 2, 0)
    sliding = lax.optimization_barrier(cotangent.transpose(1, 2, 0, 3))
    return _conv3x3(inputs, sliding).transpose(1, 2, 0, 3)


_conv3x3_canonical.defvjp(_forward, _backward)
