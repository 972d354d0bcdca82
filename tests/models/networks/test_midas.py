"""MiDaS v2.1 against recordings of the authors' code, and what is specific to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import inference
from diffdepth_jax.models.encoders import efficientnet_lite, torchvision_resnet
from diffdepth_jax.models.networks import midas
from diffdepth_jax.weights import files

LARGE = midas.Config(
    encoder=torchvision_resnet.Config(
        block="bottleneck",
        depths=(1, 1, 2, 1),
        widths=(8, 8, 12, 16),
        groups=2,
        width_per_group=32,
    ),
    head=midas.large_head(8, 4),
)
SMALL = midas.Config(
    encoder=efficientnet_lite.Config(stem=4, depths=(1,) * 7, widths=(4, 4, 8, 4, 4, 8, 4)),
    head=midas.small_head(4, 6),
    input_size=256,
)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("midas_v21_small", "midas_v21_small_256"),
        pytest.param("midas_v21", "model-f6b98070", marks=pytest.mark.slow),
    ],
)
def test_the_recorded_network_is_recognised_and_predicts_the_same(
    name, file, network_case, tmp_path
):
    case = network_case(name)
    path = tmp_path / f"{file}.safetensors"
    files.write_safetensors(path, case.state_dict)
    model = inference.load(path)
    assert model.config == midas.VARIANTS["small" if "small" in name else "large"]
    image = jnp.asarray(case.arrays["image"])
    # Not compiled: that takes longer than running it once.
    prediction, features = model.model.apply(model.variables, image, method=_with_features)
    assert case.error("prediction", prediction) <= 1e-5
    if name == "midas_v21_small":  # float32 against float64: 4e-7
        assert case.error("prediction", prediction) <= 2e-6
        for index, each in enumerate(features):
            assert case.error(f"tap{index}", each) <= 2e-6


def _with_features(model, image):
    return model(image), model.encoder(image)


@pytest.mark.parametrize("config", [LARGE, SMALL], ids=["large", "small"])
def test_names_determine_the_config_and_weights_survive_a_round_trip(
    config, random_network, tmp_path
):
    model = random_network(config)
    path = tmp_path / "weights.safetensors"
    inference.export(model, path)
    again = inference.load(path)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, dict(again.variables), dict(model.variables))
    written = files.read(path).state_dict
    assert written["scratch.refinenet4.resConfUnit1.conv1.weight"].any() == np.False_
    assert ("scratch.refinenet1.out_conv.weight" in written) == (config is SMALL)


@pytest.mark.parametrize(
    ("variant", "image_size", "input_size"),
    [
        ("large", (97, 143), (256, 384)),
        ("large", (375, 1242), (128, 384)),
        ("large", (480, 640), (288, 384)),
        ("small", (375, 1242), (64, 256)),
        ("small", (480, 640), (192, 256)),
    ],
)
def test_input_sizes_are_the_published_ones(variant, image_size, input_size):
    assert midas.VARIANTS[variant].input_spec.input_size(*image_size) == input_size


def test_bad_sizes_and_encoders_without_four_maps_are_refused(random_network):
    model = random_network(SMALL)
    with pytest.raises(ValueError, match=r"48x64 pixels.*multiples of 32"):
        model.model.apply(model.variables, jnp.zeros((1, 48, 64, 3)))
    for fields in ({"depths": (1, 1), "widths": (4, 4)}, {"stem_features": True}):
        with pytest.raises(ValueError, match="strides"):
            dataclasses.replace(LARGE, encoder=dataclasses.replace(LARGE.encoder, **fields))
    with pytest.raises(ValueError, match="input_size is 16"):
        dataclasses.replace(LARGE, input_size=16)
