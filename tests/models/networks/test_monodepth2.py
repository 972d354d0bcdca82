"""md4all's network against recordings of its code, and what is specific to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import inference
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models.encoders import torchvision_resnet
from diffdepth_jax.models.networks import monodepth2
from diffdepth_jax.weights import files, rules

SMALL = monodepth2.Config(
    encoder=torchvision_resnet.Config(
        depths=(1, 1, 1, 1), widths=(4, 6, 8, 10), stem_features=True
    ),
    decoder_features=(4, 4, 6, 6, 8),
    input_size=(64, 96),
)


def entries(model):
    table = monodepth2.rules(model.config)
    return rules.export(model.variables, table, rules.names(model.variables, table))


@pytest.mark.parametrize(
    ("name", "variant"), [("md4all_res18", "res18"), ("md4all_res50", "res50")]
)
def test_the_recorded_network_is_recognised_and_predicts_the_same(name, variant, network_case):
    case = network_case(name)
    limits = {limit: case.meta[limit] for limit in ("min_depth", "max_depth")}
    model = inference.load(case.state_dict, **limits)
    assert model.config == dataclasses.replace(monodepth2.VARIANTS[variant], **limits)
    image = jnp.asarray(case.arrays["image"])
    # Not compiled: that takes longer than running it once.
    depth, inverse = model.model.apply(
        model.variables,
        image,
        method=lambda model, image: (model(image), model.inverse_depths(image)),
    )
    assert case.error("prediction", depth) <= 2e-6  # float32 against float64: 1e-7
    nearest, farthest = 1 / limits["min_depth"], 1 / limits["max_depth"]
    for scale, each in enumerate(inverse):
        name = f"disp{scale or ''}"
        if name in case.arrays:
            disparity = (np.asarray(each, np.float64) - farthest) / (nearest - farthest)
            assert case.error(name, disparity) <= 2e-5  # the subtraction loses digits


@pytest.mark.parametrize("form", ["md4all", "Lightning", "monodepth2"])
def test_every_form_of_the_names_is_read(form, random_network):
    model = random_network(SMALL)
    state_dict = entries(model)
    if form == "Lightning":
        state_dict = {f"depth_model.{name}": array for name, array in state_dict.items()}
        state_dict["pose_model.encoder.encoder.conv1.weight"] = np.zeros((4, 6, 7, 7), np.float32)
        state_dict["loss.supervised_loss.teacher_net.encoder.encoder.fc.bias"] = np.zeros(1)
    elif form == "monodepth2":
        state_dict = {name.split(".", 1)[1]: array for name, array in state_dict.items()}
    again = inference.load(state_dict)
    jax.tree.map(np.testing.assert_array_equal, dict(again.variables), dict(model.variables))
    assert again.config.encoder == SMALL.encoder
    found = (again.config.max_depth, again.config.input_size)
    assert found == ((100.0, (192, 640)) if form == "monodepth2" else (80.0, (320, 576)))


def test_what_weights_do_not_say_is_in_the_exported_file(random_network, tmp_path):
    config = dataclasses.replace(
        SMALL, min_depth=0.5, max_depth=50.0, normalisation="robotcar_night"
    )
    path = tmp_path / "weights.safetensors"
    assert inference.export(random_network(config), path) == []
    assert inference.load(path).config == config
    assert inference.load(path, normalisation="image").config.normalisation == "image"
    # As the authors' strict loading requires.
    assert files.read(path).state_dict["encoder.encoder.fc.weight"].shape == (1000, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": "tall"}, "height is a str"),
        ({"width": 100}, "multiples of 32"),
        ({"height": float("inf")}, "height must be below"),
        ({"max_depth": 0.05}, "0 < min_depth < max_depth"),
        ({"normalisation": ["day"]}, "normalisation must be one of dataset"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        monodepth2.with_arguments(SMALL, arguments)


@pytest.mark.parametrize(
    ("stem", "size"),
    [("md4allDDa_nuscenes", (320, 576)), ("md4allDDa_robotcar", (320, 544)), ("last", (320, 576))],
)
def test_published_files_determine_the_image_size(stem, size, random_network, tmp_path):
    path = tmp_path / f"{stem}.safetensors"
    files.write_safetensors(path, entries(random_network(SMALL)))
    assert inference.load(path).config.input_size == size


@pytest.mark.parametrize("normalisation", ["dataset", "nuscenes_night", "image"])
def test_images_are_resized_and_normalised_as_in_md4all(normalisation, random_network):
    config = dataclasses.replace(SMALL, normalisation=normalisation)
    model = random_network(config)
    image = np.random.default_rng(1).integers(0, 256, (71, 53, 3), np.uint8)
    resized = Image.fromarray(image).resize((96, 64), Image.Resampling.LANCZOS)
    inputs = np.asarray(resized, np.float64) / 255
    mean, deviation = {
        "dataset": (0.45, 0.225),
        "nuscenes_night": (0.1652, 0.1728),
        "image": (inputs.mean(), inputs.std(ddof=1)),
    }[normalisation]
    normalised = jnp.asarray((inputs - mean) / deviation, jnp.float32)[None]
    plain = random_network(SMALL)  # takes images as given
    expected = np.asarray(plain.model.apply(plain.variables, normalised))[0, ..., 0]
    found = model.predict(image)
    assert found.shape == (71, 53)
    back = inference.preprocessing.to_image_size(expected, (71, 53), config.input_spec)
    np.testing.assert_allclose(found, back, rtol=2e-5)
    corners = np.ix_([0, -1], [0, -1])
    np.testing.assert_allclose(found[corners], expected[corners], rtol=2e-5)  # align_corners


def test_each_image_of_a_batch_is_normalised_by_itself(random_network):
    model = random_network(dataclasses.replace(SMALL, normalisation="image"))
    images = (
        jax.random.uniform(jax.random.key(0), (2, 64, 96, 3))
        * jnp.array([1.0, 0.3])[:, None, None, None]
    )
    both = model.model.apply(model.variables, images)
    alone = model.model.apply(model.variables, images[1:])
    np.testing.assert_allclose(both[1:], alone, rtol=1e-5)
    assert np.isfinite(model.model.apply(model.variables, 0 * images[1:])).all()  # a black frame


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_depth": None}, "0 < min_depth < max_depth"),
        ({"min_depth": 90.0}, "0 < min_depth < max_depth"),
        ({"input_size": (320, 570)}, "multiples of 32"),
        ({"decoder_features": (4, 4)}, "five"),
        ({"encoder": torchvision_resnet.Config()}, "stem_features"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_bad_weights_and_sizes_are_named(random_network):
    model = random_network(SMALL)
    with pytest.raises(ValueError, match=r"40x64 pixels.*multiples of 32"):
        model.model.apply(model.variables, jnp.zeros((1, 40, 64, 3)))
    state_dict = entries(model)
    del state_dict["decoder.decoder.12.conv.weight"]
    with pytest.raises(WeightsError, match="decoder/disparity2/kernel"):
        inference.load(state_dict)
