"""Batch statistics for other numbers of denoising steps, against NumPy and in all file formats."""

import dataclasses
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from PIL import Image

import diffdepth_jax
from diffdepth_jax import inference
from diffdepth_jax.config import to_mapping
from diffdepth_jax.inference import recalibration
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import DenoiserConfig
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.ops import random
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.weights import files, orbax, rules
from tests import scripts
from tests.weights import torch_writer

TRAINED = 20


def model_of(factor: int) -> diffdepth_jax.DepthModel:
    """Random weights and initial statistics."""
    config = diffusion_depth.Config(
        encoder=resnet.Config(depths=(1,), widths=(4,)),
        neck=NeckConfig(8),
        codec=CodecConfig(factor=factor, latent_channels=4, initial_depth=10.0),
        denoiser=DenoiserConfig(hidden_features=8),
        diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=TRAINED),
        max_depth=80.0,
    )
    module = diffusion_depth.build(config)
    variables = jax.jit(module.init_variables)(jax.random.key(0))
    model = diffdepth_jax.DepthModel(module, variables, config)
    return model


def image(height=16, width=24, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


IMAGES = [image(seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def model() -> diffdepth_jax.DepthModel:
    """As after training: the decoder's statistics are those for 20 steps."""
    model = model_of(2)
    statistics = model.recalibrate(IMAGES, TRAINED).recalibrated[TRAINED]
    variables = recalibration.replaced(model.variables, statistics)
    return dataclasses.replace(model, variables=variables)


@pytest.fixture(scope="module")
def at_five(model) -> diffdepth_jax.DepthModel:
    return model.recalibrate(IMAGES, 5)


def latents(model, images, steps):
    """The sampler's results, a list of [1, h, w, d]."""

    @jax.jit
    def sample(normalised, noise):
        condition = model.model.apply(model.variables, normalised, method="encode_image")
        return model.model.apply(model.variables, condition, noise, steps, method="sample")

    found = []
    for index, picture in enumerate(images):
        factor = model.config.codec.factor
        odd = [(0, -side % factor) for side in picture.shape[:2]]
        normalised = model.input_spec.normalise(picture)[None]
        normalised = np.pad(normalised, ((0, 0), *odd, (0, 0)), mode="edge")
        key = jax.random.fold_in(jax.random.key(0), index)
        noise = random.normal(key, model.model.latent_shape(normalised.shape))
        found.append(np.asarray(sample(normalised, noise)))
    return found


def convolve(inputs, kernel, dilation=1):
    """Literal correlation in float64, zeros between and around: 4x4 with dilation 2, or 3x3."""
    batch, height, width, channels = inputs.shape
    spread = np.zeros(
        (batch, dilation * height - dilation + 1, dilation * width - dilation + 1, channels)
    )
    spread[:, ::dilation, ::dilation] = inputs
    pad = 2 if dilation == 2 else 1
    spread = np.pad(spread, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = len(kernel)
    height, width = (side - size + 1 for side in spread.shape[1:3])
    return sum(
        spread[:, row : row + height, column : column + width] @ kernel[row, column].astype(float)
        for row in range(size)
        for column in range(size)
    )


def moments(maps):
    """Mean and unbiased variance over all pixels of several maps."""
    pixels = np.concatenate([each.reshape(-1, each.shape[-1]) for each in maps])
    return pixels.mean(0), pixels.var(0, ddof=1)


def by_numpy(model, images, steps):
    """What `recalibrate` should find, computed literally from the latents."""
    params = jax.tree.map(np.asarray, model.variables["params"])["codec"]["decoder"]
    maps = latents(model, images, steps)
    if model.config.codec.factor == 1:
        maps = [convolve(each, params["conv0"]["kernel"]) for each in maps]
        mean, var = moments(maps)
        norm = params["norm0"]
        maps = [(each - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"] for each in maps]
        maps = [np.where(each > 0, each, 0.2 * each) for each in maps]
        last = moments([convolve(each, params["conv1"]["kernel"]) for each in maps])
        return {"norm0": (mean, var), "norm1": last}
    for name in ("up0", "up1")[: model.config.codec.factor // 2]:
        maps = [convolve(each, params[name]["kernel"], 2) + params[name]["bias"] for each in maps]
    return {"norm0": moments(maps)}


@pytest.mark.parametrize(("factor", "sizes"), [(1, [15]), (2, [16, 21]), (4, [18])])
def test_statistics_are_over_all_pixels_of_all_images(factor, sizes):
    model = model_of(factor)
    images = [image(height, seed=seed) for height in sizes for seed in range(2)]
    found = model.recalibrate(images, 5).recalibrated[5]
    assert found.keys() == {"codec"} and found["codec"].keys() == {"decoder"}
    want = by_numpy(model, images, 5)
    assert found["codec"]["decoder"].keys() == want.keys()
    for name, (mean, var) in want.items():
        layer = found["codec"]["decoder"][name]
        np.testing.assert_allclose(layer["mean"], mean, rtol=1e-4, atol=1e-4 * np.sqrt(var).max())
        np.testing.assert_allclose(layer["var"], var, rtol=1e-4)


def test_at_the_trained_number_of_steps_they_are_the_batch_statistics(model):
    batch = jnp.concatenate(latents(model, IMAGES, TRAINED))
    _, changed = model.model.apply(
        model.variables, batch, True, method="decode_latent", mutable=["batch_stats"]
    )
    old = model.variables["batch_stats"]["codec"]["decoder"]["norm0"]
    new = changed["batch_stats"]["codec"]["decoder"]["norm0"]
    found = model.recalibrate(IMAGES, TRAINED).recalibrated[TRAINED]["codec"]["decoder"]["norm0"]
    for name in ("mean", "var"):  # a tenth of the way to the batch's
        np.testing.assert_allclose(
            old[name] + 0.1 * (found[name] - old[name]), new[name], rtol=1e-6, err_msg=name
        )


def test_another_number_of_steps_is_wrong_until_recalibrated(model, at_five):
    def spread(predictor, steps):
        depths = predictor.predict(IMAGES, num_inference_steps=steps)
        return np.std(np.log(np.stack(depths)))

    want = spread(model, TRAINED)
    with pytest.warns(UserWarning, match="not for 5"):
        wrong = spread(dataclasses.replace(model), 5)
    right = spread(at_five, 5)
    assert abs(np.log(wrong / want)) > 1  # the differences have almost vanished
    assert abs(np.log(right / want)) < 0.1


def test_each_number_of_steps_has_its_own_statistics(model, at_five):
    both = at_five.recalibrate(IMAGES[:1], 3)
    assert both.recalibrated.keys() == {3, 5}
    assert at_five.recalibrated.keys() == {5} and not model.recalibrated
    np.testing.assert_array_equal(
        both.predict(image(), num_inference_steps=5),
        at_five.predict(image(), num_inference_steps=5),
    )
    norms = [both.variables_at(steps)["batch_stats"]["codec"]["decoder"] for steps in (3, 5, None)]
    means = [norm["norm0"]["mean"] for norm in norms]
    assert (means[0] != means[1]).all() and (means[0] != means[2]).all()
    assert both.variables_at() is both.variables
    with pytest.warns(UserWarning, match=r"for 3, 5, 20 .*not for 7.*recalibrate\.py --steps=7 "):
        both.variables_at(7)


def test_one_warning_per_number_of_steps(model):
    model = dataclasses.replace(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            model.predict(image(), num_inference_steps=5)
            model.predict(image(), num_inference_steps=TRAINED)
            model.predict(image())
    assert len(caught) == 1, [str(each.message) for each in caught]
    assert caught[0].filename == __file__  # the caller, not the library


def test_an_image_listed_twice_gets_different_noise(model):
    once, twice = model.recalibrate([image()], 1), model.recalibrate([image()] * 2, 1)
    other = model.recalibrate([image()], 1, seed=1)
    means = [
        each.recalibrated[1]["codec"]["decoder"]["norm0"]["mean"] for each in (once, twice, other)
    ]
    assert (means[0] != means[1]).all() and (means[0] != means[2]).all()


def test_impossible_recalibrations_are_refused(model):
    with pytest.raises(ValueError, match="list of images is empty"):
        model.recalibrate([], 5)
    with pytest.raises(ValueError, match="num_inference_steps must be between 1 and"):
        model.recalibrate([image()], 0)
    with pytest.raises(ValueError, match="Encoder does not decode a latent"):
        recalibration.decoder_statistics(
            resnet.Encoder(model.config.encoder), {}, [np.zeros((8, 8, 3), np.float32)], 5
        )


def test_text_keeps_every_bit():
    arrays = {"a/b": np.random.default_rng(0).standard_normal(50).astype(np.float32)}
    found = recalibration.from_text(recalibration.to_text({10: arrays, 5: arrays}))
    assert list(found) == [5, 10]
    np.testing.assert_array_equal(found[10]["a/b"], arrays["a/b"])
    assert found[10]["a/b"].dtype == np.float32
    of_numbers = ('{"5": {"a": [NaN]}}', '{"5": {"a": [1e99]}}', '{"0": {}}')
    for damaged in ("{", "[]", '{"five": {}}', '{"5": {"a": ["x"]}}', *of_numbers):
        with pytest.raises(ValueError, match=r"cannot be read.*tools/recalibrate\.py"):
            recalibration.from_text(damaged)


def test_a_file_with_published_names_holds_them(at_five, tmp_path):
    path = tmp_path / "model.safetensors"
    both = at_five.recalibrate([image()], 2)
    inference.export(both, path)
    loaded = diffdepth_jax.load(path)
    assert_same(loaded.recalibrated, both.recalibrated)
    # PyTorch does not see them; they are stored in the metadata under the published names.
    with safetensors.safe_open(path, framework="np") as file:
        names, found = set(file.keys()), json.loads(file.metadata()["recalibrated"])
    want = "depth_head.depth_transform.conv_inv_transform.1.running_"
    assert found["5"].keys() == {f"{want}mean", f"{want}var"} <= names
    assert not any("recalibrated" in name for name in names)
    # Once more, starting from a checkpoint that already has them.
    inference.export(loaded, path)
    assert_same(diffdepth_jax.load(path).recalibrated, both.recalibrated)


def test_damaged_statistics_are_named(at_five, tmp_path):
    path = tmp_path / "model.safetensors"
    inference.export(at_five, path)
    contents = files.read(path)
    for entry, message in (("{", "tools/recalibrate"), ('{"5": {"fc.bias": [0]}}', r"fc\.bias")):
        metadata = contents.metadata | {"recalibrated": entry}
        files.write_safetensors(path, contents.state_dict, metadata)
        with pytest.raises(
            ValueError, match=rf"(?s)model\.safetensors cannot be loaded.*{message}"
        ):
            diffdepth_jax.load(path)


def test_a_run_stores_them_next_to_the_weights(at_five, tmp_path):
    variables = at_five.variables
    state = TrainState(
        step=jnp.int32(7),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state={},
        ema_params={},
    )
    config = {"model": to_mapping(at_five.config)}
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(7, state, config, b"{}", {})
    directory = orbax.checkpoint_directory(tmp_path)
    inference.save_recalibrated(at_five, directory)
    assert_same(diffdepth_jax.load(tmp_path).recalibrated, at_five.recalibrated)
    # Another process, which loaded the run before this was stored, adds statistics of its own.
    at_two = dataclasses.replace(at_five, recalibrated={2: at_five.recalibrated[5]})
    inference.save_recalibrated(at_two, directory)
    stored = diffdepth_jax.load(tmp_path).recalibrated
    assert_same(stored, {2: at_five.recalibrated[5], **at_five.recalibrated})
    # When training continues, they disappear with the checkpoint that they belong to.
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() == 7
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state
        )
        restored, *_ = checkpointer.restore(7, abstract)
        assert_same(restored, state)
        checkpointer.save(8, state, config, b"{}", {})
    assert not directory.exists() and not diffdepth_jax.load(tmp_path).recalibrated
    (tmp_path / "checkpoints" / "8" / "recalibrated.json").write_text("{")
    with pytest.raises(ValueError, match=r"8/recalibrated\.json has recalibrated statistics that"):
        diffdepth_jax.load(tmp_path)


def run_tool(*arguments):
    return scripts.run("tools/recalibrate.py", "--steps=3", "--steps=2", *arguments)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five images; the tool is to use the first, third and last."""
    path = tmp_path / "images"
    path.mkdir()
    for index in range(5):
        Image.fromarray(image(seed=index)).save(path / f"{index}.png")
    return path


def test_the_script_recalibrates_an_official_file(at_five, folder, tmp_path):
    state_dict = official_state_dict(at_five)
    value = {
        "net": {name: torch_writer.whole(name, array) for name, array in state_dict.items()},
        "args": torch_writer.namespace(inference_steps=TRAINED, max_depth=80.0),
    }
    official, output = tmp_path / "model_00020.pt", tmp_path / "five.safetensors"
    torch_writer.write_zip(official, value, state_dict)
    arguments = f"--checkpoint={official}", f"--input={folder}"
    done = run_tool(*arguments)
    assert done.returncode == 2 and "set --output" in done.stderr
    done = run_tool(*arguments, "--num_images=3", "--crop=12x30", f"--output={output}")
    assert done.returncode == 0, done.stderr
    loaded, want = diffdepth_jax.load(output), diffdepth_jax.load(official)
    assert loaded.config == want.config and not want.recalibrated
    assert_same(loaded.variables, want.variables)
    chosen = [image(seed=index)[2:14] for index in (0, 2, 4)]
    for steps in (3, 2):
        want = want.recalibrate(chosen, steps)
    assert_same(loaded.recalibrated, want.recalibrated)


def official_state_dict(model) -> dict[str, np.ndarray]:
    table = diffusion_depth.rules(model.config)
    names = rules.names(model.variables, table)
    return rules.export(model.variables, table, names)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
