"""Layers that match PyTorch's arithmetic and default initialisation, in NHWC.

They replace flax's layers where those differ noticeably: symmetric padding, Kaiming-uniform
initialisation with a = sqrt(5), BatchNorm's unbiased running variance, two-pass variances.
Normalisation is computed in float32 and returns the type of its input. On accelerators, the
precision of matrix products and convolutions follows JAX's option `jax_default_matmul_precision`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from diffdepth_jax.ops import platform, random
from diffdepth_jax.ops.conv import Gradient, conv3x3
from diffdepth_jax.ops.group_norm import group_norm

gelu = partial(jax.nn.gelu, approximate=False)
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def symmetric_uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound).

    With bound = 1 / sqrt(fan_in) this is PyTorch's default for convolutions and linear layers: the
    Kaiming-uniform kernel with a = sqrt(5) has the same bound as the bias.
    """

    def initializer(
        key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        del out_sharding
        return random.uniform(key, shape, bound).astype(dtype)

    return initializer


def normal(deviation: float) -> Initializer:
    """Normal with mean 0 and the given standard deviation."""

    def initializer(
        key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        del out_sharding
        return (deviation * random.normal(key, shape)).astype(dtype)

    return initializer


class Conv(nn.Module):
    """2-D convolution like `torch.nn.Conv2d`.

    Attributes:
        features: output channels.
        kernel_size: side of the kernel.
        stride: stride along both axes.
        padding: rows and columns of zeros on each side; None for kernel_size // 2. "same" pads as
            TensorFlow does: a side of n pixels becomes ceil(n / stride), and an odd row or column
            goes at the bottom or right.
        groups: number of groups that input and output channels are divided into.
        use_bias: whether a bias is added.
        dtype: type of the computation and the result; parameters are float32.
        gradient: how a 3x3 convolution of stride 1 is differentiated, see `ops.conv.conv3x3`.
        kernel_init, bias_init: None for PyTorch's defaults.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | Literal["same"] | None = None
    groups: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    gradient: Gradient = "auto"
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        size, fan_in = self.kernel_size, inputs.shape[-1] // self.groups
        default = symmetric_uniform((size * size * fan_in) ** -0.5)
        shape = (size, size, fan_in, self.features)
        kernel = self.param("kernel", self.kernel_init or default, shape).astype(self.dtype)
        outputs = _convolve(
            inputs.astype(self.dtype),
            kernel,
            self.stride,
            self._paddings(inputs.shape[1:3]),
            self.groups,
            self.gradient,
        )
        if self.use_bias:
            bias = self.param("bias", self.bias_init or default, (self.features,))
            outputs += _across(bias, outputs).astype(self.dtype)
        return outputs

    def _paddings(self, sides: tuple[int, ...]) -> "_Paddings":
        size, stride = self.kernel_size, self.stride
        if self.padding == "same":
            return same_paddings(sides, size, stride)
        border = size // 2 if self.padding is None else self.padding
        return (border, border), (border, border)


# Zeros before and after the rows, and before and after the columns.
_Paddings = tuple[tuple[int, int], tuple[int, int]]


def same_paddings(sides: tuple[int, ...], size: int, stride: int) -> _Paddings:
    """TensorFlow's "SAME" padding for a map with these sides and a kernel of this size."""
    total = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in sides]
    height, width = ((each // 2, each - each // 2) for each in total)
    return height, width


class ConvTranspose(nn.Module):
    """Transposed 2-D convolution like `torch.nn.ConvTranspose2d` (no output padding).

    A side of n pixels becomes (n - 1) * stride - 2 * padding + kernel_size. The kernel is stored
    flipped, so this is an ordinary correlation over inputs dilated by the stride; the
    `conv_transpose` transform in `weights.rules` does the flip.
    """

    features: int
    kernel_size: int
    stride: int
    padding: int = 0
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        size = self.kernel_size
        # PyTorch computes fan-in from the second axis of its (in, out, h, w) weight.
        default = symmetric_uniform((size * size * self.features) ** -0.5)
        shape = (size, size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", default, shape).astype(self.dtype)
        inputs = inputs.astype(self.dtype)
        if size == self.stride and self.padding == 0:
            outputs = _spread(inputs, kernel)
        elif size == 2 * self.stride and self.stride == 2 * self.padding:
            outputs = _overlapping(inputs, kernel)
        else:
            border = size - 1 - self.padding
            outputs = lax.conv_general_dilated(
                inputs,
                kernel,
                window_strides=(1, 1),
                padding=((border, border), (border, border)),
                lhs_dilation=(self.stride, self.stride),
                dimension_numbers=_LAYOUT,
            )
        if self.use_bias:
            bias = self.param("bias", default, (self.features,))
            outputs += _across(bias, outputs).astype(self.dtype)
        return outputs


class Linear(nn.Module):
    """Dense layer over the last axis, like `torch.nn.Linear`; initialisers as in `Conv`."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, inputs: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        default = symmetric_uniform(inputs.shape[-1] ** -0.5)
        shape = (inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or default, shape).astype(self.dtype)
        outputs = inputs.astype(self.dtype) @ kernel
        if self.use_bias:
            bias = self.param("bias", self.bias_init or default, (self.features,))
            outputs += _across(bias, outputs).astype(self.dtype)
        return outputs


# How DPT resamples a map: up by 4 or 2 with a transposed convolution, not at all, or down by 2 with
# a strided convolution.
Factor = Literal["4", "2", "1", "1/2"]
FACTORS: tuple[Factor, ...] = ("4", "2", "1", "1/2")  # for its four levels, fine to coarse


def resampled(
    features: Float[Array, "b h w c"], factor: Factor, dtype: Any, name: str
) -> Float[Array, "b h2 w2 c"]:
    """Resamples a map with a layer of this name. Must be called in a compact method."""
    channels = features.shape[-1]
    if factor == "1":
        return features
    if factor == "1/2":
        return Conv(channels, 3, 2, dtype=dtype, name=name)(features)
    size = int(factor)
    return ConvTranspose(channels, size, size, dtype=dtype, name=name)(features)


# Vision transformers initialise dense layers from a normal with std 0.02, "truncated" at +-2, which
# is a hundred standard deviations, so effectively not truncated.
transformer_init = normal(0.02)
TransformerLinear = partial(
    Linear, kernel_init=transformer_init, bias_init=nn.initializers.zeros_init()
)


class Mlp(nn.Module):
    """A transformer's feed-forward part: two dense layers with an exact GELU in between."""

    hidden_features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        hidden = gelu(TransformerLinear(self.hidden_features, dtype=self.dtype, name="fc1")(inputs))
        return TransformerLinear(inputs.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class SwiGLU(nn.Module):
    """A transformer's gated feed-forward part (Shazeer 2020, arXiv:2002.05202, equation 6).

    The first dense layer outputs the gate's channels first, then the gated ones.
    """

    hidden_features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        both = TransformerLinear(2 * self.hidden_features, dtype=self.dtype, name="fc1")(inputs)
        gate, hidden = jnp.split(both, 2, -1)
        hidden = jax.nn.silu(gate) * hidden
        return TransformerLinear(inputs.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class BatchNorm(nn.Module):
    """Normalisation over all axes but the last, like `torch.nn.BatchNorm2d`.

    In training, the batch is normalised by its own (biased) variance, and the running statistics
    move towards the batch's mean and **unbiased** variance. Under `jit`, statistics cover the whole
    batch even if it is sharded.

    Attributes:
        train: whether to use the batch's statistics (`batch_stats` must then be mutable) or the
            running ones.
        momentum: weight of the new batch, as in PyTorch (flax's momentum is 1 minus this).
        eps: added to the variance.
        bias_init: initialiser of the affine map's bias.
    """

    train: bool
    momentum: float = 0.1
    eps: float = 1e-5
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, inputs: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        shape, axes = inputs.shape[-1:], tuple(range(inputs.ndim - 1))
        scale = self.param("scale", nn.initializers.ones_init(), shape)
        bias = self.param("bias", self.bias_init, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, variance = running_mean.value, running_var.value
        values = inputs.astype(jnp.float32)
        if self.train:
            count = inputs.size // inputs.shape[-1]
            if count < 2:
                raise ValueError(
                    "BatchNorm in training needs at least two values per channel, but an input of "
                    f"shape {inputs.shape} has {count}: use a larger batch or image"
                )
            mean = values.mean(axes)
            variance = jnp.square(values - _across(mean, values)).mean(axes)
            if not self.is_initializing():
                unbiased = variance * (count / (count - 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        return _standardise(inputs, mean, variance, self.eps, scale, bias)


class GroupNorm(nn.Module):
    """Normalisation per image over space and groups of channels, like `torch.nn.GroupNorm`.

    Attributes:
        num_groups: number of groups of adjacent channels.
        eps: added to the variance.
        gradient: see `ops.group_norm.group_norm`.
    """

    num_groups: int
    eps: float = 1e-5
    gradient: Gradient = "auto"

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = inputs.shape[-1]
        if channels % self.num_groups:
            raise ValueError(
                f"{channels} channels cannot be divided into {self.num_groups} equal groups"
            )
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        return group_norm(inputs, scale, bias, self.num_groups, self.eps, self.gradient)


class LayerNorm(nn.Module):
    """Normalisation over the last axis, like `torch.nn.LayerNorm`."""

    eps: float = 1e-5
    scale_init: Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, inputs: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        scale = self.param("scale", self.scale_init, inputs.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), inputs.shape[-1:])
        values = inputs.astype(jnp.float32)
        mean = values.mean(-1, keepdims=True)
        variance = jnp.square(values - mean).mean(-1, keepdims=True)
        return _standardise(inputs, mean, variance, self.eps, scale, bias)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per image in training.

    A branch is kept with probability 1 - rate and then divided by that probability. Uses the random
    stream "drop_path".
    """

    rate: float

    @nn.compact
    def __call__(self, inputs: Float[Array, "b ..."], train: bool) -> Float[Array, "b ..."]:
        if not train or self.rate == 0.0:
            return inputs
        kept = jax.random.bernoulli(self.make_rng("drop_path"), 1.0 - self.rate, inputs.shape[:1])
        kept = kept.reshape(-1, *[1] * (inputs.ndim - 1))
        return jnp.where(kept, inputs / (1.0 - self.rate), jnp.zeros_like(inputs))


def drop_path_rates(rate: float, depths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Rates, by stage, that increase linearly from 0 at the first block to `rate` at the last."""
    rates = iter(np.linspace(0.0, rate, sum(depths)).tolist())
    return tuple(tuple(next(rates) for _ in range(depth)) for depth in depths)


def _across(vector: Array, like: Array) -> Array:
    """A vector with leading axes of length 1, so that it broadcasts along the last axis of
    `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _standardise(
    inputs: Array, mean: Array, variance: Array, eps: float, scale: Array, bias: Array
) -> Array:
    """Normalises in float32 by statistics (full rank or per channel); returns `inputs`' type."""
    if mean.ndim == 1:
        mean, variance = _across(mean, inputs), _across(variance, inputs)
    factor = lax.rsqrt(variance + eps) * _across(scale, inputs)
    outputs = (inputs.astype(jnp.float32) - mean) * factor + _across(bias, inputs)
    return outputs.astype(inputs.dtype)


def _convolve(
    inputs: Array,
    kernel: Array,
    stride: int,
    paddings: _Paddings,
    groups: int,
    gradient: Gradient,
) -> Array:
    size, _, _, features = kernel.shape
    if (size, stride, paddings, groups) == (3, 1, ((1, 1), (1, 1)), 1):
        return conv3x3(inputs, kernel, gradient=gradient)
    if groups > 1 and platform.current() == "cpu":
        if groups == inputs.shape[-1] == features:
            return _depthwise(inputs, kernel, stride, paddings)
        return _grouped(inputs, kernel, stride, paddings, groups, gradient)
    return _xla_convolution(inputs, kernel, stride, paddings, groups)


def _xla_convolution(
    inputs: Any, kernel: Any, stride: int, paddings: _Paddings, groups: int
) -> Array:
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(stride, stride),
        padding=paddings,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


_BLOCK = 32  # channels; fastest of 16 to 128 in every stage of a ResNeXt-101 32x8d


@partial(jax.jit, static_argnums=(2, 3, 4, 5))  # compiled once even if called outside `jit`
def _grouped(
    inputs: Array,
    kernel: Array,
    stride: int,
    paddings: _Paddings,
    groups: int,
    gradient: Gradient,
) -> Array:
    """Grouped convolution as a loop of dense ones, for the CPU.

    XLA:CPU has no fast kernel for grouped convolutions. Groups are joined into blocks of about 32
    channels, each a dense convolution whose kernel is 0 between different groups. Per-group
    products of patches and kernels were 2 to 10 times slower; an unrolled loop over the blocks was
    no faster and took ten times longer to compile.
    """
    size, _, width, features = kernel.shape
    fitting = max(_BLOCK // width, 1)
    joined = next(count for count in range(fitting, 0, -1) if groups % count == 0)
    blocks, outputs = groups // joined, features // groups
    parts = kernel.reshape(size, size, width, blocks, joined, outputs)
    own = jnp.eye(joined, dtype=kernel.dtype)
    slices = jnp.moveaxis(inputs.reshape(*inputs.shape[:-1], blocks, joined * width), -2, 0)

    def convolve(block: tuple[Array, Array]) -> Array:
        hidden, index = block
        # Built inside the loop: doing it for all blocks beforehand would copy all weights.
        part = lax.dynamic_index_in_dim(parts, index, 3, keepdims=False)
        dense = jnp.einsum("yxigo,gh->yxhigo", part, own)
        dense = dense.reshape(size, size, joined * width, joined * outputs)
        return _convolve(hidden, dense, stride, paddings, 1, gradient)

    convolved = jnp.moveaxis(lax.map(convolve, (slices, jnp.arange(blocks))), 0, -2)
    return convolved.reshape(*convolved.shape[:-2], features)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(inputs: Any, kernel: Any, stride: int, paddings: _Paddings) -> Array:
    """Depthwise convolution for the CPU.

    XLA:CPU has no fast kernel for grouped convolutions; a sum over the kernel's taps, which it
    fuses into one pass, was 10 to 40 times faster. The gradient of that sum compiles very slowly
    and is no faster, so the convolution's gradient is used.
    """
    return _sum_of_taps(inputs, kernel, stride, paddings)


@partial(jax.jit, static_argnums=(2, 3))  # layers of equal shape share one trace
def _sum_of_taps(inputs: Any, kernel: Any, stride: int, paddings: _Paddings) -> Array:
    size = kernel.shape[0]
    padded = jnp.pad(inputs, ((0, 0), *paddings, (0, 0)))
    rows, columns = (
        (side + sum(padding) - size) // stride * stride + 1
        for side, padding in zip(inputs.shape[1:3], paddings, strict=True)
    )
    taps = (
        padded[:, y : y + rows : stride, x : x + columns : stride]
        * kernel[y, x, 0][None, None, None, :]
        for y in range(size)
        for x in range(size)
    )
    return cast(Array, sum(taps))


def _depthwise_forward(
    inputs: Any, kernel: Any, stride: int, paddings: _Paddings
) -> tuple[Array, tuple[Any, Any]]:
    return _depthwise(inputs, kernel, stride, paddings), (inputs, kernel)


def _depthwise_backward(
    stride: int, paddings: _Paddings, residuals: tuple[Any, Any], cotangent: Array
) -> tuple[Array, Array]:
    def convolution(inputs: Any, kernel: Any) -> Array:
        return _xla_convolution(inputs, kernel, stride, paddings, inputs.shape[-1])

    return jax.vjp(convolution, *residuals)[1](cotangent)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _spread(inputs: Array, kernel: Array) -> Array:
    """Transposed convolution with non-overlapping windows, as one matrix product.

    On XLA:CPU, the gradient of the equivalent dilated convolution takes fifty times as long.
    """
    batch, height, width, _ = inputs.shape
    size, _, _, features = kernel.shape
    tiles = jnp.einsum("bhwi,yxio->bhywxo", inputs, kernel[::-1, ::-1])
    return tiles.reshape(batch, height * size, width * size, features)


def _overlapping(inputs: Array, kernel: Array) -> Array:
    """Transposed convolution whose windows are twice its stride wide, as a 3x3 convolution.

    Each input pixel becomes a square of `stride` by `stride` pixels, which depends on it and its
    neighbours. With 16 channels, the gradient of the equivalent dilated convolution takes XLA:CPU
    13 to 15 times as long.
    """
    stride = kernel.shape[0] // 2
    border = stride // 2
    padded = jnp.pad(kernel, ((border, border), (border, border), (0, 0), (0, 0)))
    parts = rearrange(padded, "(y a) (x b) i o -> y x i a b o", a=stride, b=stride)
    joined = rearrange(parts[:, :, :, ::-1, ::-1], "y x i a b o -> y x i (a b o)")
    squares = conv3x3(inputs, joined)
    return rearrange(squares, "n h w (a b o) -> n (h a) (w b) o", a=stride, b=stride)
