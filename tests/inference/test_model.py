"""load() and predict() on a small network with random weights, in every form a checkpoint takes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffdepth_jax
from diffdepth_jax.config import to_mapping
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.inference import files
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import DenoiserConfig
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.state import TrainState

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = diffusion_depth.Config(
    encoder=resnet.Config(depths=(1, 1, 1, 1), widths=(4, 6, 8, 10)),
    neck=NeckConfig(8),
    codec=CodecConfig(latent_channels=4),
    denoiser=DenoiserConfig(hidden_features=8),
    diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=3),
    max_depth=80.0,
)
STEP = 7


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with one checkpoint of random weights."""
    workdir = tmp_path_factory.mktemp("run")
    model = diffusion_depth.build(CONFIG)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    state = TrainState(
        step=jnp.int32(STEP),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state={"moments": variables["params"]},
        ema_params={},
    )
    with Checkpointer(workdir, keep=1) as checkpointer:
        checkpointer.save(STEP, state, {"model": to_mapping(CONFIG)}, b"{}", {})
    return workdir


@pytest.fixture(scope="module")
def model(run) -> diffdepth_jax.DepthModel:
    return diffdepth_jax.load(run)


def image(height=37, width=50, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_run_is_rebuilt_from_its_directory_alone(run, model):
    assert model.config == CONFIG
    depth = model.predict(image())
    assert depth.shape == (37, 50)
    assert depth.dtype == np.float32
    assert 0 <= depth.min() < depth.max() <= CONFIG.max_depth
    for path in (run / "checkpoints", run / "checkpoints" / str(STEP)):
        np.testing.assert_array_equal(diffdepth_jax.load(path).predict(image()), depth)


def test_computation_in_bfloat16_leaves_weights_and_depth_in_float32(run, model):
    half = diffdepth_jax.load(run, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, half.variables, model.variables)
    depth, want = half.predict(image()), model.predict(image())
    assert depth.dtype == np.float32
    difference = np.abs(np.log(depth / want))
    assert 1e-4 < np.median(difference) < 0.05


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


def test_an_images_depth_does_not_depend_on_what_it_is_predicted_with(model):
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
    # So that what is averaged are predictions already clipped, as protocols score them.
    model = dataclasses.replace(model, config=dataclasses.replace(CONFIG, max_depth=median))
    mirrored = model.predict(image()[:, ::-1].copy(), noise=noise)[:, ::-1]
    want = (model.predict(image(), noise=noise) + mirrored) / 2
    depth = model.predict(image(), noise=noise, flip_tta=True)
    np.testing.assert_allclose(depth, want, rtol=1e-5)


def test_paths_and_pillow_images_are_read_as_arrays_are(model, tmp_path):
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
        ("nowhere.png", FileNotFoundError, r"nowhere\.png"),
        (3, TypeError, r"not int"),
    ],
)
def test_what_is_no_image_is_refused(model, wrong, error, message):
    with pytest.raises(error, match=message):
        model.predict(wrong)


def test_noise_of_a_wrong_shape_is_refused_with_the_right_one(model):
    with pytest.raises(ValueError, match=r"\(2, 2, 4\).*37, 50.*\(19, 25, 4\)"):
        model.predict(image(), noise=np.zeros((2, 2, 4)))
    with pytest.raises(ValueError, match="1 noise arrays were given for 2 images"):
        model.predict([image(), image()], noise=[np.zeros((19, 25, 4))])


def test_sources_that_are_no_checkpoint_are_refused(tmp_path, run):
    with pytest.raises(FileNotFoundError, match=r"missing\.pt does not exist"):
        diffdepth_jax.load(tmp_path / "missing.pt")
    with pytest.raises(WeightsError, match="no complete checkpoint"):
        diffdepth_jax.load(tmp_path)
    with pytest.raises(WeightsError, match=f"no checkpoint of step 8, only of .{STEP}"):
        diffdepth_jax.load(run, step=8)
    with pytest.raises(ValueError, match=r"no network known here.*diffusion_depth"):
        diffdepth_jax.load({"fc.weight": np.zeros((2, 2))})


@pytest.fixture(scope="module")
def released_state_dict() -> dict[str, np.ndarray]:
    """Random weights of CONFIG under the names that the release gives them."""
    rng = np.random.default_rng(0)
    shapes = released_shapes()
    return {name: rng.uniform(0.1, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def released_shapes() -> dict[str, tuple[int, ...]]:
    def norm(name, width):
        entries = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{entry}": (width,) for entry in entries}

    shapes, inputs = {}, 3
    for index, width in enumerate(CONFIG.encoder.channels):
        block = f"depth_backbone.layers.{index}.0"
        shapes |= {
            f"{block}.conv1.weight": (width, inputs, 3, 3),
            f"{block}.conv2.weight": (width, width, 3, 3),
            f"{block}.downsample.weight": (width, inputs, 3, 3),
            f"{block}.downsample.bias": (width,),
            **norm(f"{block}.bn1", width),
            **norm(f"{block}.bn2", width),
            f"depth_head.conv_lateral.{index}.0.weight": (8, width, 3, 3),
            **norm(f"depth_head.conv_lateral.{index}.1", 8),
        }
        if index:
            shapes[f"depth_head.conv_up.{index - 1}.0.weight"] = (8, 8, 2, 2)
            shapes |= norm(f"depth_head.conv_up.{index - 1}.1", 8)
        inputs = width
    codec, denoiser = "depth_head.depth_transform", "depth_head.model"
    convolutions = {
        f"{denoiser}.noise_embedding.0": (8, 4, 3, 3),
        f"{denoiser}.noise_embedding.3": (8, 8, 3, 3),
        f"{denoiser}.pred.0": (8, 8, 3, 3),
        f"{denoiser}.pred.3": (4, 8, 3, 3),
        f"{codec}.conv_inv_transform.0": (4, 4, 4, 4),
        f"{codec}.conv_inv_transform.3.0": (1, 4, 3, 3),
    }
    group_norms = {"noise_embedding.1": 8, "noise_embedding.4": 8, "pred.1": 8, "pred.4": 4}
    return (
        shapes
        | {f"{name}.weight": shape for name, shape in convolutions.items()}
        | {f"{name}.bias": (shape[0],) for name, shape in convolutions.items()}
        | {
            f"{denoiser}.{name}.{entry}": (width,)
            for name, width in group_norms.items()
            for entry in ("weight", "bias")
        }
        | {
            f"{denoiser}.time_embedding.weight": (1280, 8),
            f"{codec}.conv_transform.0.0.weight": (4, 1, 3, 3),
            f"{codec}.conv_transform.1.0.weight": (4, 4, 3, 3),
            **norm(f"{codec}.conv_transform.0.1", 4),
            **norm(f"{codec}.conv_transform.1.1", 4),
            **norm(f"{codec}.conv_inv_transform.1", 4),
        }
    )


def test_a_state_dict_says_its_architecture(released_state_dict):
    model = diffdepth_jax.load(released_state_dict)
    released = diffusion_depth.DiffusionConfig()
    assert model.config == dataclasses.replace(CONFIG, diffusion=released, max_depth=None)
    assert model.predict(image()).shape == (37, 50)


def test_safetensors_load_as_the_state_dict_does(released_state_dict, tmp_path):
    from diffdepth_jax.weights import files

    path = tmp_path / "model.safetensors"
    files.write_safetensors(path, released_state_dict)
    loaded, want = diffdepth_jax.load(path), diffdepth_jax.load(released_state_dict)
    assert loaded.config == want.config
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, want.variables)


def test_damaged_metadata_are_named(released_state_dict, tmp_path):
    from diffdepth_jax.weights import files

    files.write_safetensors(tmp_path / "model.safetensors", released_state_dict, {"args": "{"})
    with pytest.raises(WeightsError, match=r"model\.safetensors .* its metadata args are no JSON"):
        diffdepth_jax.load(tmp_path / "model.safetensors")


def test_one_wrong_shape_is_named_with_both_shapes(released_state_dict):
    key = "depth_head.conv_lateral.1.0.weight"
    wrong = released_state_dict | {key: np.zeros((8, 5, 3, 3), np.float32)}
    with pytest.raises(WeightsError) as error:
        diffdepth_jax.load(wrong)
    message = str(error.value)
    assert key in message
    assert "5" in message
    assert message.count("->") == 1, message  # nothing else is wrong


def test_a_missing_and_an_unknown_key_are_named_together(released_state_dict):
    wrong = dict(released_state_dict)
    del wrong["depth_head.conv_lateral.1.0.weight"]
    wrong["depth_head.surprise.weight"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError, match=r"(?s)surprise.*conv|conv.*surprise"):
        diffdepth_jax.load(wrong)


def test_predict_script_does_the_rest_and_reports_what_it_skips(run, tmp_path):
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    Image.fromarray(image(24, 32)).save(images / "a.png")
    Image.fromarray(image(20, 30)).save(images / "c.jpg")
    whole = (images / "a.png").read_bytes()
    (images / "b.png").write_bytes(whole[: len(whole) // 2])
    (images / "notes.txt").write_text("no image")
    done = subprocess.run(
        [
            sys.executable,
            "predict.py",
            f"--checkpoint={run}",
            f"--input={images}",
            f"--output={output}",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert f"skipped {images / 'b.png'}" in done.stderr
    assert "1 of 3 images" in done.stderr
    assert sorted(path.name for path in output.iterdir()) == [
        f"{stem}{ending}" for stem in "ac" for ending in (".npy", ".png", "_colour.png")
    ]
    depth = np.load(output / "a.npy")
    assert depth.shape == (24, 32)
    with Image.open(output / "a.png") as picture:
        stored = np.asarray(picture)
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 256, np.clip(depth, 1 / 256, None), atol=1 / 512 + 1e-6)
    with Image.open(output / "c_colour.png") as picture:
        assert picture.size == (30, 20)


def test_images_are_found_by_path_directory_or_pattern(tmp_path):
    find = files.find_images
    odd = tmp_path / "p [1].png"
    odd.touch()
    assert find(odd) == find(tmp_path) == find(tmp_path / "*.png") == [odd]
    with pytest.raises(FileNotFoundError, match="no image found"):
        find(tmp_path / "*.bmp")


def test_results_keep_the_folders_of_images_that_share_a_stem(model, tmp_path):
    paths = [tmp_path / "in" / drive / "0000000005.png" for drive in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        Image.fromarray(image(16, 16)).save(path)
    found = files.find_images(tmp_path / "in" / "*" / "*.png")
    failures = files.predict_files(model, found, tmp_path / "out")
    assert failures == []
    written = sorted(path.parent.name for path in (tmp_path / "out").rglob("0000000005.npy"))
    assert written == ["a", "b"]


@pytest.mark.parametrize("names", [("a.png",), ("b.png", "b.jpg"), ("c.png", "c_colour.png")])
def test_no_result_replaces_an_image_or_another_result(model, tmp_path, names):
    paths = [tmp_path / name for name in names]
    for path in paths:
        Image.fromarray(image(16, 16)).save(path)
    before = {path: path.read_bytes() for path in paths}
    output = tmp_path if len(names) == 1 else tmp_path / "out"
    with pytest.raises(ValueError, match="would replace"):
        files.predict_files(model, paths, output)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_wrong_option_is_no_skipped_image(model, tmp_path):
    Image.fromarray(image(16, 16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="num_inference_steps"):
        files.predict_files(model, [tmp_path / "a.png"], tmp_path / "out", num_inference_steps=0)


def test_deep_pixels_are_refused_not_saturated(model, tmp_path):
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


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_written_by_pytorch_loads_to_the_same_variables(
    released_state_dict, tmp_path, zipped
):
    torch = pytest.importorskip("torch")
    from argparse import Namespace

    path = tmp_path / "model_00010.pt"
    tensors = {name: torch.from_numpy(array) for name, array in released_state_dict.items()}
    tensors["depth_backbone.layers.0.0.bn1.num_batches_tracked"] = torch.tensor(5)
    arguments = Namespace(inference_steps=4, max_depth=88.0, head_specify="DDIMDepthEstimate_Res")
    contents = {"net": tensors, "args": arguments}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    loaded, want = diffdepth_jax.load(path), diffdepth_jax.load(released_state_dict)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, want.variables)
    assert loaded.config.diffusion.num_inference_steps == 4
    assert loaded.config.max_depth == 88.0
