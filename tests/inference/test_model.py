"""predict() on a small network with random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffdepth_jax
from diffdepth_jax.data import resampling
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference import model as model_module
from diffdepth_jax.inference import preprocessing
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.typing import InputSpec
from tests.inference.small_model import CONFIG, image


def test_predict_is_the_chain_of_the_public_methods(model):
    def call(method, *arguments, **options):
        arguments = [jnp.asarray(argument) for argument in arguments]
        return model.model.apply(model.variables, *arguments, method=method, **options)

    even = image(36, 48)
    noise = np.random.default_rng(1).standard_normal((18, 24, 4)).astype(np.float32)
    normalised = (even / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    condition = call("encode_image", jnp.asarray(normalised[None], jnp.float32))
    latent = call("sample", condition, noise[None], num_inference_steps=5)
    want = np.clip(call("decode_latent", latent)[0, :, :, 0], 0, CONFIG.max_depth)
    with pytest.warns(UserWarning, match="for 3 denoising steps, not for 5"):
        depths = [model.predict(even, noise=n, num_inference_steps=5) for n in (noise, noise[None])]
    for depth in depths:
        np.testing.assert_allclose(depth, want, rtol=1e-4)
    assert np.abs(model.predict(even, noise=noise) / want - 1).max() > 1e-3  # 3 steps, not 5


def test_an_images_depth_does_not_depend_on_the_rest_of_the_batch(model):
    one, other = image(seed=1), image(20, 30, seed=2)
    listed = model.predict([one, other])
    assert [depth.shape for depth in listed] == [(37, 50), (20, 30)]
    np.testing.assert_array_equal(listed[1], model.predict(other))
    stacked = model.predict(np.stack([one, image(seed=3)]))
    assert stacked.shape == (2, 37, 50)
    np.testing.assert_array_equal(stacked[0], listed[0])


def test_the_seed_draws_the_noise(model):
    np.testing.assert_array_equal(model.predict(image(), seed=3), model.predict(image(), seed=3))
    assert (model.predict(image(), seed=3) != model.predict(image(), seed=4)).mean() > 0.5


def test_flip_tta_averages_with_the_mirrored_image(model):
    noise = np.zeros((19, 25, 4), np.float32)
    median = float(np.median(model.predict(image(), noise=noise)))
    # Clipped before averaging, as the protocols score predictions.
    model = dataclasses.replace(model, config=dataclasses.replace(CONFIG, max_depth=median))
    mirrored = model.predict(image()[:, ::-1].copy(), noise=noise)[:, ::-1]
    want = (model.predict(image(), noise=noise) + mirrored) / 2
    depth = model.predict(image(), noise=noise, flip_tta=True)
    np.testing.assert_allclose(depth, want, rtol=1e-5)


def test_paths_and_pillow_images_give_the_same_depth_as_arrays(model, tmp_path):
    path = tmp_path / "street.png"
    Image.fromarray(image()).save(path)
    want = model.predict(image())
    for source in (path, str(path), Image.fromarray(image())):
        np.testing.assert_array_equal(model.predict(source), want)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), ValueError, r"uint8 RGB .* not float32 \[8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), ValueError, r"uint8 RGB .* \[8, 8\]"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"uint8 RGB .* \[0, 8, 3\]"),
        ("nowhere.png", FileNotFoundError, r"nowhere\.png"),
        (3, TypeError, r"not int"),
    ],
)
def test_bad_images_are_refused(model, wrong, error, message):
    with pytest.raises(error, match=message):
        model.predict(wrong)


def test_noise_of_a_wrong_shape_is_refused_naming_the_right_one(model):
    with pytest.raises(ValueError, match=r"\(2, 2, 4\).*37, 50.*\(19, 25, 4\)"):
        model.predict(image(), noise=np.zeros((2, 2, 4)))
    with pytest.raises(ValueError, match="1 noise arrays were given for 2 images"):
        model.predict([image(), image()], noise=[np.zeros((19, 25, 4))])


def test_16_bit_pixels_are_refused_not_saturated(model, tmp_path):
    deep = Image.fromarray(np.full((16, 16), 1000, np.uint16))
    deep.save(tmp_path / "deep.png")
    for source in (deep, tmp_path / "deep.png"):
        with pytest.raises(ValueError, match="more than 8 bits"):
            model.predict(source)


def test_a_sampler_that_adds_noise_predicts_too(model):
    noisy = dataclasses.replace(CONFIG.diffusion, eta=0.5)
    config = dataclasses.replace(CONFIG, diffusion=noisy)
    other = dataclasses.replace(model, model=diffusion_depth.build(config), config=config)
    assert (other.predict(image()) != model.predict(image())).any()
    np.testing.assert_array_equal(other.predict(image()), other.predict(image()))


def other_model(model, **fields):
    """The same weights with another config."""
    config = dataclasses.replace(CONFIG, **fields)
    return dataclasses.replace(model, model=diffusion_depth.build(config), config=config)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("flip_tta", [False, True])
def test_a_batch_gives_the_same_depth_as_single_images(model, eta, flip_tta):
    model = other_model(model, diffusion=dataclasses.replace(CONFIG.diffusion, eta=eta))
    images = [image(24, 32, seed=0), image(20, 30), image(24, 32, seed=1), image(24, 32, seed=2)]
    alone = [model.predict(each, flip_tta=flip_tta) for each in images]
    together = model.predict(images, flip_tta=flip_tta, batch_size=2)
    for depth, want in zip(together, alone, strict=True):
        np.testing.assert_allclose(depth, want, rtol=1e-5)
    noises = [np.zeros(model.model.latent_shape((1, *each.shape)), "f4") for each in images]
    noises[2] += 1
    together = model.predict(images, noises, flip_tta=flip_tta, batch_size=4)
    np.testing.assert_allclose(
        together[2], model.predict(images[2], noises[2], flip_tta=flip_tta), rtol=1e-5
    )


def test_batches_hold_images_of_equal_size_up_to_the_limit(model, monkeypatch):
    shapes = []
    apply = model_module._apply
    monkeypatch.setattr(
        model_module,
        "_apply",
        lambda model, variables, images, *rest: (
            shapes.append(images.shape[:3]) or apply(model, variables, images, *rest)
        ),
    )
    images = [image(16, 16), image(16, 24), image(16, 16), image(16, 24), image(16, 16)]
    depths = model.predict(images, batch_size=2)
    assert [depth.shape for depth in depths] == [each.shape[:2] for each in images]
    assert sorted(shapes) == [(1, 16, 16), (2, 16, 16), (2, 16, 24)]


def test_a_network_gets_the_input_in_its_spec(model, monkeypatch):
    spec = InputSpec(size=(32, 32), bound="lower", multiple=8, std=(0.5, 0.5, 0.5))
    monkeypatch.setattr(diffusion_depth, "INPUT", spec)
    picture = image(21, 35)
    inputs = preprocessing.to_input(picture, spec)
    assert inputs.shape == (32, 56, 3)
    noise = np.zeros((16, 28, 4), np.float32)
    direct = model.model.apply(model.variables, jnp.asarray(inputs[None]), jnp.asarray(noise[None]))
    want = resampling.resize(np.asarray(direct)[0, :, :, 0], (21, 35), "bilinear")
    depth = model.predict(picture, noise)
    assert depth.shape == (21, 35) and depth.dtype == np.float32
    np.testing.assert_allclose(depth, np.clip(want, 0, 80), rtol=1e-4)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_a_seed_out_of_range_is_refused(model, seed):
    with pytest.raises(ConfigError, match=f"seed is {seed}"):
        model.predict(image(), seed=seed)


def test_an_unknown_average_is_refused(model):
    with pytest.raises(ConfigError, match=r"'inverse'.*depth or inverse_depth"):
        model.predict(image(), flip_tta=True, flip_average="inverse")


def test_the_fingerprint_depends_on_what_affects_predictions_and_nothing_else(model, run):
    assert diffdepth_jax.load(run).fingerprint() == model.fingerprint()
    assert other_model(model, max_depth=70.0).fingerprint() != model.fingerprint()
    changed = jax.tree.map(lambda leaf: leaf + 1e-3, model.variables)
    assert dataclasses.replace(model, variables=changed).fingerprint() != model.fingerprint()
    recalibrated = model.recalibrate([image()], 2)
    assert recalibrated.is_recalibrated(2) and not recalibrated.is_recalibrated()
    assert recalibrated.fingerprint(2) != recalibrated.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("size", [(24, 32), (23, 31)])
def test_the_last_denoising_step_is_the_prediction(model, size):
    seen = image(*size)
    model = other_model(model, diffusion=dataclasses.replace(CONFIG.diffusion, eta=0.5))
    depths = model.trajectory(seen)
    assert depths.shape == (3, *size)
    np.testing.assert_allclose(np.clip(depths[-1], 0, 80), model.predict(seen), rtol=1e-4)
    assert np.abs(depths[0] - depths[-1]).max() > 1e-2
    recalibrated = model.recalibrate([seen], 2)
    depths = recalibrated.trajectory(seen, 2)
    want = recalibrated.predict(seen, num_inference_steps=2)
    np.testing.assert_allclose(np.clip(depths[-1], 0, 80), want, rtol=1e-4)
