"""The latent codecs against literal float64 convolutions, with the release's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.models.codec import Codec, CodecConfig, rules
from diffdepth_jax.weights.rules import convert

CHANNELS = 4
CONFIGS = {
    "factor1": CodecConfig(factor=1, latent_channels=CHANNELS),
    "factor2": CodecConfig(factor=2, latent_channels=CHANNELS),
    "factor4": CodecConfig(factor=4, latent_channels=CHANNELS),
    "pointwise": CodecConfig(latent_channels=CHANNELS, pointwise=True),
}


def _conv(maps, weight, bias=None, stride=1):
    """torch.nn.functional.conv2d on one NCHW array, padding kernel // 2."""
    size = weight.shape[-1]
    maps = np.pad(maps, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(maps, (size, size), (2, 3))
    output = np.einsum("bihwyx,oiyx->bohw", windows[:, :, ::stride, ::stride], weight)
    return output if bias is None else output + bias[None, :, None, None]


def _conv_transpose(maps, weight, bias):
    """torch.nn.functional.conv_transpose2d, kernel 4, stride 2, padding 1, by scattering."""
    batch, _, height, width = maps.shape
    output = np.zeros((batch, weight.shape[1], 2 * height + 2, 2 * width + 2))
    for y in range(height):
        for x in range(width):
            output[:, :, 2 * y : 2 * y + 4, 2 * x : 2 * x + 4] += np.einsum(
                "bi,ioyx->boyx", maps[:, :, y, x], weight
            )
    return output[:, :, 1:-1, 1:-1] + bias[None, :, None, None]


class Reference:
    """The published codec; `weights` collects the weights it uses, under the published names."""

    def __init__(self, rng):
        self.weights, self._rng = {}, rng

    def _get(self, name, *shape):
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.5
        self.weights[name] = np.float32(scale * self._rng.standard_normal(shape))
        if name.endswith("var"):
            self.weights[name] = np.abs(self.weights[name]) + np.float32(0.5)
        return self.weights[name].astype(np.float64)

    def norm(self, name, maps):
        self.weights[f"{name}.num_batches_tracked"] = np.int64(3)
        channels = maps.shape[1]
        mean, var, weight, bias = (
            self._get(f"{name}.{part}", channels)[None, :, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (maps - mean) / np.sqrt(var + 1e-5) * weight + bias

    def conv_norm(self, name, maps, channels, stride=1):
        weight = self._get(f"{name}.0.weight", channels, maps.shape[1], 3, 3)
        return self.norm(f"{name}.1", _conv(maps, weight, stride=stride))

    def encode(self, kind, depth):
        name = "conv_transform"
        if kind == "pointwise":
            hidden = _conv(depth, self._get(f"{name}.0.weight", CHANNELS, 1, 1, 1))
            hidden = np.tanh(_conv(hidden, self._get(f"{name}.1.weight", CHANNELS, CHANNELS, 1, 1)))
            pad = ((0, 0), (0, 0), (1, 1), (1, 1))
            hidden = np.pad(hidden, pad, constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(hidden, (3, 3), (2, 3))
            return windows[:, :, ::2, ::2].max((-1, -2))
        strides = {"factor1": (1, 1), "factor2": (2, 1), "factor4": (2, 2, 1)}[kind]
        for index, stride in enumerate(strides):
            depth = self.conv_norm(f"{name}.{index}", depth, CHANNELS, stride)
            if index < len(strides) - 1:
                depth = np.where(depth > 0, depth, 0.2 * depth)
        return np.tanh(depth)

    def decode(self, kind, hidden):
        name = "conv_inv_transform"
        if kind == "factor1":
            hidden = self.conv_norm(f"{name}.0", hidden, CHANNELS)
            logit = self.conv_norm(f"{name}.1", np.where(hidden > 0, hidden, 0.2 * hidden), 1)
        else:
            ups = 2 if kind == "factor4" else 1
            for index in range(ups):
                weight = self._get(f"{name}.{index}.weight", CHANNELS, CHANNELS, 4, 4)
                bias = self._get(f"{name}.{index}.bias", CHANNELS)
                hidden = _conv_transpose(hidden, weight, bias)
            hidden = np.maximum(self.norm(f"{name}.{ups}", hidden), 0)
            last = f"{name}.{ups + 2}.0"
            weight = self._get(f"{last}.weight", 1, CHANNELS, 3, 3)
            logit = _conv(hidden, weight, self._get(f"{last}.bias", 1))
        return 1 / np.maximum(1 / (1 + np.exp(-logit)), 1e-6) - 1


def _initialise(codec):
    def touch(module):
        return module.decode(module.encode(jnp.zeros((1, 8, 8, 1))))

    return codec.init(jax.random.key(0), method=touch)


@pytest.mark.parametrize("kind", CONFIGS)
def test_both_directions_match_the_published_arithmetic(kind):
    rng = np.random.default_rng(0)
    reference, config = Reference(rng), CONFIGS[kind]
    depth = rng.uniform(0, 20, (2, 1, 9, 14)) * (rng.random((2, 1, 9, 14)) < 0.5)
    want_latent = reference.encode(kind, depth)
    want_depth = reference.decode(kind, want_latent)
    codec = Codec(config)
    expected = jax.eval_shape(lambda: _initialise(codec))
    variables = convert(reference.weights, rules(config), expected)

    nhwc = jnp.asarray(depth.transpose(0, 2, 3, 1), jnp.float32)
    latent = jax.jit(lambda v, d: codec.apply(v, d, method="encode"))(variables, nhwc)
    decoded = jax.jit(lambda v, z: codec.apply(v, z, method="decode"))(variables, latent)
    np.testing.assert_allclose(latent.transpose(0, 3, 1, 2), want_latent, atol=3e-6)
    np.testing.assert_allclose(decoded.transpose(0, 3, 1, 2), want_depth, rtol=1e-4)
    assert latent.shape[1:3] == config.latent_size(9, 14)
    assert decoded.shape[1:3] == tuple(config.factor * side for side in latent.shape[1:3])


@pytest.mark.parametrize("kind", ["factor1", "factor2"])
def test_the_decoder_starts_near_a_given_depth(kind):
    config = CONFIGS[kind]
    latent = jax.random.normal(jax.random.key(1), (1, 16, 16, CHANNELS))

    def median(initial_depth):
        codec = Codec(CodecConfig(config.factor, CHANNELS, initial_depth=initial_depth))

        @jax.jit
        def first_depth():
            return codec.apply(
                _initialise(codec), latent, train=True, method="decode", mutable=["batch_stats"]
            )[0]

        return float(jnp.median(first_depth()))

    assert median(20.0) == pytest.approx(20.0, rel=0.7)
    assert median(None) < 4.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 4, "pointwise": True}, "factor is 4; the pointwise encoder needs 2"),
        ({"latent_channels": 0}, "latent_channels is 0"),
        ({"initial_depth": -1.0}, r"not -1\.0"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CodecConfig(**fields)
