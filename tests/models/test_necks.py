"""The pyramid and HAHI against the published forward pass in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models.necks import Neck, NeckConfig, check, rules, within_image
from diffdepth_jax.ops.image import adaptive_average_pool
from diffdepth_jax.weights.rules import convert

CHANNELS = (3, 4, 5)
# Sizes are rounded up at every stage, so the pyramid must pool 14 rows to 13, and 4 to 3.
SIZES = ((13, 20), (7, 10), (3, 5))


def _features():
    rng = np.random.default_rng(0)
    return tuple(
        rng.standard_normal((2, *size, channels)).astype(np.float32)
        for size, channels in zip(SIZES, CHANNELS, strict=True)
    )


class Reference:
    """In evaluation mode, NHWC; collects the weights it draws under the published names."""

    def __init__(self):
        self.weights, self._rng = {}, np.random.default_rng(1)

    def _norm_relu(self, name, maps):
        self.weights[f"{name}.num_batches_tracked"] = np.int64(0)
        parts = {}
        for part in ("weight", "bias", "running_mean", "running_var"):
            value = self._rng.uniform(0.5, 1.5, maps.shape[-1]).astype(np.float32)
            parts[part] = self.weights[f"{name}.{part}"] = value
        maps = (maps - parts["running_mean"]) / np.sqrt(parts["running_var"] + 1e-5)
        return np.maximum(maps * parts["weight"] + parts["bias"], 0)

    def _weight(self, name, *shape):
        weight = self._rng.standard_normal(shape) * np.prod(shape[1:]) ** -0.5
        self.weights[f"{name}.weight"] = np.float32(weight)
        return weight

    def conv(self, name, norm, maps, channels, size):
        weight = self._weight(name, channels, maps.shape[-1], size, size)
        border = ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0))
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(maps, border), (size, size), (1, 2)
        )
        return self._norm_relu(norm, np.einsum("bhwiyx,oiyx->bhwo", windows, weight))

    def up(self, name, norm, maps, channels):
        weight = self._weight(name, maps.shape[-1], channels, 2, 2)
        spread = np.einsum("bhwi,ioyx->bhywxo", maps, weight)
        batch, height, _, width, _, _ = spread.shape
        return self._norm_relu(norm, spread.reshape(batch, 2 * height, 2 * width, channels))

    def hahi(self, features, projected):
        root, outputs = "hahineck", []
        for level, maps in enumerate(features):
            channels = maps.shape[-1]
            name = f"{root}.lateral_convs.{level}"
            lateral = self.conv(f"{name}.conv", f"{name}.bn", maps, channels, 1)
            proj = f"{root}.trans_proj.{level - 1}" if level else f"{root}.conv_proj.0"
            projection = self.conv(f"{proj}.conv", f"{proj}.bn", lateral, projected, 1)
            pair = (lateral, projection) if level else (projection, lateral)
            fuse = f"{root}.trans_fusion.{level - 1}" if level else f"{root}.conv_fusion.0"
            both = np.concatenate(pair, -1)
            outputs.append(self.conv(f"{fuse}.conv", f"{fuse}.bn", both, channels, 3))
        for name, shape in (("level_embed", (4, 7)), ("multi_att.value_proj.bias", (7,))):
            self.weights[f"{root}.{name}"] = np.zeros(shape, np.float32)
        return outputs

    def pyramid(self, features, width):
        condition = None
        for level in reversed(range(len(features))):
            name = f"conv_lateral.{level}"
            lateral = self.conv(f"{name}.0", f"{name}.1", features[level], width, 3)
            if condition is not None:
                coarse = self.up(f"conv_up.{level}.0", f"conv_up.{level}.1", condition, width)
                pooled = adaptive_average_pool(jnp.asarray(coarse, jnp.float32), lateral.shape[1:3])
                lateral = lateral + np.asarray(pooled)
            condition = lateral
        return condition


@pytest.mark.parametrize("hahi", [False, True])
def test_condition_matches_the_published_arithmetic(hahi):
    reference, features = Reference(), _features()
    config = NeckConfig(features=6, hahi=hahi, hahi_features=7)
    want = reference.pyramid(reference.hahi(features, 7) if hahi else features, 6)
    if not hahi:  # heads without HAHI create it but never call it
        reference.weights["convup_fp.0.weight"] = np.zeros((6, 6, 2, 2), np.float32)
    neck = Neck(config)
    inputs = tuple(jnp.asarray(array) for array in features)
    expected = jax.eval_shape(neck.init, jax.random.key(0), inputs)
    variables = convert(reference.weights, rules(config, len(CHANNELS)), expected)
    got = jax.jit(neck.apply)(variables, inputs)
    assert got.shape == (2, *SIZES[0], 6)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_hahi_weights_do_not_fit_a_plain_neck():
    reference, features = Reference(), _features()
    reference.pyramid(reference.hahi(features, 7), 6)
    config = NeckConfig(features=6)
    inputs = tuple(jnp.asarray(array) for array in features)
    expected = jax.eval_shape(Neck(config).init, jax.random.key(0), inputs)
    with pytest.raises(WeightsError, match="hahineck"):
        convert(reference.weights, rules(config, 3), expected)


def test_impossible_widths_are_refused():
    with pytest.raises(ValueError, match=r"features \(0\)"):
        NeckConfig(features=0)


def test_maps_with_equal_strides_are_reassembled_before_the_pyramid():
    """At a quarter, a half, once and twice their stride; odd sides are rounded up."""
    rng = np.random.default_rng(0)
    maps = tuple(jnp.asarray(rng.standard_normal((2, 3, 5, 6)), jnp.float32) for _ in range(4))
    neck = Neck(NeckConfig(8, reassemble=(2, 3, 4, 5)))
    condition, variables = neck.init_with_output(jax.random.key(0), maps)
    assert condition.shape == (2, 12, 20, 8)
    kernels = {
        name: leaf["conv"]["kernel"].shape
        for name, leaf in variables["params"].items()
        if name.startswith("lateral")
    }
    assert kernels == {f"lateral{level}": (3, 3, level + 2, 8) for level in range(4)}
    # Every map matters.
    for level in range(4):
        other = tuple(array + (at == level) for at, array in enumerate(maps))
        assert jnp.abs(neck.apply(variables, other) - condition).max() > 1e-4


@pytest.mark.parametrize(
    ("fields", "reductions", "complaint"),
    [
        ({}, (14,) * 4, r"all have a stride of 14 pixels: set neck\.reassemble"),
        ({"reassemble": (8,) * 4}, (4, 8, 16, 32), "leave it empty"),
        ({"reassemble": (8,) * 4}, (14,) * 3, r"has 3 maps.*select four \(encoder\.taps\)"),
        ({}, (14,) * 2, "has 2 maps"),
    ],
)
def test_a_neck_that_does_not_fit_the_encoder_is_refused(fields, reductions, complaint):
    with pytest.raises(ValueError, match=complaint):
        check(NeckConfig(**fields), reductions)
    with pytest.raises(ValueError, match="four numbers of channels"):
        NeckConfig(reassemble=(8, 8))


def test_the_condition_is_cropped_to_the_image():
    whole = jnp.zeros((1, 104, 260, 1))  # for 364 x 910 pixels in patches of 14
    one = within_image(whole, NeckConfig(reassemble=(8,) * 4), (14,) * 4, (352, 906))
    assert one.shape == (1, 101, 259, 1)
    pyramid = within_image(jnp.zeros((1, 88, 227, 1)), NeckConfig(), (4, 8, 16, 32), (352, 906))
    assert pyramid.shape == (1, 88, 227, 1)
