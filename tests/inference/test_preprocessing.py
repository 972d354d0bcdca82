"""Preprocessing and its inverse, against recordings of the published transforms."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.data import resampling
from diffdepth_jax.inference import DepthModel, preprocessing
from diffdepth_jax.models.networks.network import NetworkConfig
from diffdepth_jax.typing import InputSpec

RECORDED = Path(__file__).resolve().parents[1] / "golden" / "preprocessing.npz"
HALF = (0.5, 0.5, 0.5)
# The published rules: target, bound, multiple, mean and std.
SPECS = {
    "da1": InputSpec((518, 518), bound="lower", multiple=14),
    "midas_v21": InputSpec((384, 384), bound="upper", multiple=32),
    "midas_v21_small": InputSpec((256, 256), bound="upper", multiple=32),
    "dpt_384": InputSpec((384, 384), multiple=32, mean=HALF, std=HALF),
    "dpt_beit_512": InputSpec((512, 512), multiple=32, mean=HALF, std=HALF),
    "swin2_384": InputSpec((384, 384), keep_aspect=False, multiple=32, mean=HALF, std=HALF),
    "swin2_256": InputSpec((256, 256), keep_aspect=False, multiple=32, mean=HALF, std=HALF),
    "levit_224": InputSpec((224, 224), keep_aspect=False, multiple=32, mean=HALF, std=HALF),
}
ZOEDEPTH = InputSpec(
    multiple=32,
    interpolation="bilinear",
    align_corners=True,
    mean=HALF,
    std=HALF,
    output_interpolation="bicubic",
    padding=3.0,
    flip_tta=True,
)
SPECS |= {
    "zoe_n": dataclasses.replace(ZOEDEPTH, size=(384, 512)),
    "zoe_k": dataclasses.replace(ZOEDEPTH, size=(384, 768)),
}
IMAGES = {(97, 143): 1001, (375, 1242): 1002, (480, 640): 1003}


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as file:
        return {name: file[name] for name in file.files}


def picture(height, width, seed):
    """The recorded image: plane waves and one disc with a hard edge."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    waves = np.zeros((height, width, 3))
    for _ in range(12):
        along_x, along_y = rng.uniform(-0.08, 0.08, 2)
        phase = rng.uniform(0, 2 * np.pi)
        amplitude = rng.uniform(-1, 1, 3)
        angle = 2 * np.pi * (along_x * columns + along_y * rows) + phase
        waves += amplitude * np.cos(angle)[..., None]
    disc = (rows - 0.5 * height) ** 2 + (columns - 0.4 * width) ** 2 < (0.2 * height) ** 2
    waves[disc] += [1.5, -1.0, 0.5]
    return np.clip(np.round(128 + 28 * waves), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("family", SPECS)
def test_published_transforms_are_reproduced(recorded, family, size):
    name = f"{family}_{size[0]}x{size[1]}"
    facts = json.loads(str(recorded["meta"]))["images"][name]
    inputs = preprocessing.to_input(picture(*size, IMAGES[size]), SPECS[family])
    assert inputs.shape == (*facts["shape"][1:], 3) and inputs.dtype == np.float32
    assert inputs.mean() == pytest.approx(facts["mean"], abs=1e-5)
    assert inputs.std() == pytest.approx(facts["std"], abs=1e-5)
    inputs = inputs.transpose(2, 0, 1)
    if family in ("zoe_n", "zoe_k"):
        down, right = facts["stride"]
        np.testing.assert_allclose(inputs[:, ::down, ::right], recorded[name], atol=1e-4)
        return
    top, left = facts["crop_at"]
    window = inputs[:, top : top + 8, left : left + 8]
    np.testing.assert_allclose(window, recorded[f"{name}_crop"], atol=1e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded(NetworkConfig):
    """Config of the network with which `zoe_*_out` were recorded."""

    name: str = "recorded"
    family: str = "zoe_n"
    output = "metric_depth"

    @property
    def input_spec(self):
        return SPECS[self.family]


class Network(nn.Module):
    def __call__(self, image):
        ramp = 0.3 * jnp.linspace(0, 1, image.shape[2])
        return image.mean(-1, keepdims=True) + 2 + ramp[None, None, :, None]


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("family", ["zoe_n", "zoe_k"])
def test_a_prediction_with_padding_and_flip_is_reproduced(recorded, family, size):
    name = f"{family}_{size[0]}x{size[1]}"
    facts = json.loads(str(recorded["meta"]))["images"][name]
    model = DepthModel(Network(), {}, Recorded(family=family))
    image = picture(*size, IMAGES[size])
    depth = model.predict(image)
    assert depth.shape == size and depth.dtype == np.float32
    down, right = facts["out_stride"]
    np.testing.assert_allclose(depth[::down, ::right], recorded[f"{name}_out"], atol=1e-4)
    assert depth.mean() == pytest.approx(facts["out_mean"], abs=1e-5)
    assert depth.std() == pytest.approx(facts["out_std"], abs=1e-5)
    assert abs(model.predict(image, flip_tta=False) - depth).max() > 1e-2


def test_padding_reflects_without_the_edge_and_is_cropped_again():
    spec = InputSpec(padding=2.0, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    image = np.arange(8 * 18 * 3, dtype=np.uint8).reshape(8, 18, 3)
    assert spec.margins(8, 18) == (4, 6) and spec.padded_size(8, 18) == (16, 30)
    inputs = preprocessing.to_input(image, spec)
    np.testing.assert_array_equal(inputs[4:-4, 6:-6], image)
    np.testing.assert_array_equal(inputs[:4, 6:-6], image[4:0:-1])
    np.testing.assert_array_equal(inputs[4:-4, -6:], image[:, -2:-8:-1])
    np.testing.assert_array_equal(
        preprocessing.to_image_size(inputs[..., 0], (8, 18), spec), image[..., 0]
    )
    one = preprocessing.to_input(image[:1, :1], spec)
    assert one.shape == (3, 3, 3) and (one == image[0, 0]).all()


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("post_da1", (97, 143), {"output_interpolation": "bilinear"}),
        ("post_da2", (97, 143), {"output_align_corners": True}),
        ("post_midas", (97, 143), {"output_interpolation": "bicubic"}),
        ("post_midas_down", (9, 13), {"output_interpolation": "bicubic"}),
    ],
)
def test_resizing_back_is_reproduced(recorded, name, size, options):
    result = recorded["post_input"][0, 0]
    back = preprocessing.to_image_size(result, size, InputSpec(**options))
    assert back.shape == size and back.dtype == np.float32
    kept = back if size == (9, 13) else back[::6, ::8]
    np.testing.assert_allclose(kept, recorded[name][0, 0], atol=1e-4)


def test_an_image_of_the_right_size_is_only_normalised():
    image = picture(28, 42, 0)
    spec = InputSpec(multiple=14)
    np.testing.assert_array_equal(preprocessing.to_input(image, spec), spec.normalise(image))
    assert InputSpec().input_size(17, 23) == (17, 23)
    assert InputSpec(multiple=14).input_size(5, 30) == (14, 28)


@pytest.mark.parametrize(
    "field", [{"size": (0, 4)}, {"multiple": 0}, {"std": (0.0, 1.0, 1.0)}, {"padding": -1.0}]
)
def test_an_impossible_spec_is_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        InputSpec(**field)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resampling_preserves_ramps_and_corners(method):
    ramp = np.add.outer(np.arange(9.0), 2 * np.arange(7.0))
    larger = resampling.resize(ramp, (17, 13), method, align_corners=True)
    want = np.add.outer(np.linspace(0, 8, 17), 2 * np.linspace(0, 6, 13))
    inside = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(
        larger[inside], want[inside], atol=1e-12 if method == "bilinear" else 0.2
    )
    np.testing.assert_allclose(larger[[0, 0, -1, -1], [0, -1, 0, -1]], [0, 12, 8, 20])
    np.testing.assert_array_equal(resampling.resize(ramp, (9, 7), method), ramp)
