"""3x3 convolution with a gradient that stays fast inside `lax.scan` on the CPU.

XLA:CPU only has a fast kernel for convolutions in canonical form (NHWC inputs, HWIO kernel). The
transposes introduced by differentiating `lax.conv_general_dilated` are rewritten to that form at
top level but not in a loop body, where the backward pass of a convolution then runs tens of times
slower than the forward pass. So the gradient is written here in canonical operations. cuDNN and
TPUs do not need this, so it is optional.
"""

from typing import Any, Literal

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
    return (_conv3x3_canonical if is_custom(gradient) else _conv3x3)(inputs, kernel)


def is_custom(gradient: Gradient) -> bool:
    """Whether an operation uses its own gradient here instead of XLA's.

    Raises:
        ValueError: if `gradient` is none of its values.
    """
    if gradient == "auto":
        return platform.current() == "cpu"
    if gradient in ("xla", "custom"):
        return gradient == "custom"
    raise ValueError(f"gradient must be 'auto', 'xla' or 'custom', not {gradient!r}")


def _conv3x3(inputs: Any, kernel: Any) -> Array:
    return lax.conv_general_dilated(
        inputs, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _conv3x3_canonical(inputs: Any, kernel: Any) -> Array:
    return _conv3x3(inputs, kernel)


def _forward(inputs: Any, kernel: Any) -> tuple[Array, tuple[Any, Any]]:
    return _conv3x3(inputs, kernel), (inputs, kernel)


def _backward(residuals: tuple[Any, Any], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = residuals
    # Without the barrier, XLA folds the flip and transpose into the convolution, which is then no
    # longer canonical.
    flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2))
    return _conv3x3(cotangent, flipped), _kernel_gradient(inputs, cotangent)


def _kernel_gradient(inputs: Any, cotangent: Array) -> Array:
    """Three matrix products, one for each row of the kernel.

    The operand with fewer channels is transposed, so that its pixels are the last axis, and its
    three windows of a row lie below each other: a copy of three times its size. On two CPU cores
    this takes 0.67 of the processor time of one convolution that has the cotangent as its kernel
    and channels as its batch for 64 and 256 channels, 0.65 for 256 and 256, 1.05 for 64 and 64, and
    0.11 for 64 and 16, for which XLA has no fast convolution of this kind. One product with all
    nine windows, or nine products, take 1.2 times as long.
    """
    channels, features = inputs.shape[-1], cotangent.shape[-1]
    few, many = (inputs, cotangent) if channels < features else (cotangent, inputs)
    height, width = few.shape[1:3]
    # Without the barriers XLA transposes, or collects windows, once for every product.
    planes = lax.optimization_barrier(few.transpose(3, 0, 1, 2))
    padded = jnp.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = lax.optimization_barrier(
        jnp.concatenate([padded[..., column : column + width] for column in range(3)])
    )
    products = [
        lax.dot_general(windows[:, :, row : row + height], many, (((1, 2, 3), (0, 1, 2)), ((), ())))
        for row in range(3)
    ]
    gradient = jnp.stack(products).reshape(3, 3, few.shape[-1], many.shape[-1])
    if channels < features:
        return gradient
    # Here the cotangent was moved over the inputs, which is the opposite direction.
    return jnp.flip(gradient, (0, 1)).transpose(0, 1, 3, 2)


_conv3x3_canonical.defvjp(_forward, _backward)
