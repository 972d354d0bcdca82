"""What the worker does without PyTorch: control images, reading and writing."""

import ast
import fnmatch
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.adverse import worker


def test_the_worker_imports_nothing_but_the_standard_library_at_first():
    """It must be able to report a missing package, and runs next to any version of JAX."""
    tree = ast.parse(Path(worker.__file__).read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    allowed = {"numpy", "PIL", "torch", "diffusers", "transformers", "huggingface_hub"}
    assert imported - set(sys.stdlib_module_names) <= allowed
    top = [name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    assert {name.name for name in top} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("scale, shift", [(1, 0), (300, 0), (-0.5 + 1, -40), (1e-3, 7)])
def test_control_is_minus_minimum_over_maximum_at_any_scale(scale, shift):
    inverse_depth = np.array([[0.0, 1.0], [2.0, 4.0]], np.float32)
    image = worker.control_image(inverse_depth * scale + shift, "minimum_maximum")
    assert image.dtype == np.uint8
    assert image.shape == (2, 2, 3)
    np.testing.assert_allclose(image[..., 0], [[0, 64], [128, 255]], atol=1)
    assert (image == image[..., :1]).all()


def test_control_of_zoedepth_is_depth_between_percentiles():
    depth = np.linspace(2, 80, 10_000).reshape(100, 100)
    image = worker.control_image((1 / depth).astype(np.float32), "percentiles")[..., 0]
    near, far = np.percentile(depth, (2, 85))
    expected = 255 * np.clip((far - depth) / (far - near), 0, 1)
    np.testing.assert_allclose(image, expected, atol=1)
    sky = np.ones((4, 4), np.float32)
    sky[0] = 0  # at infinity
    sky[3] = 2
    image = worker.control_image(sky, "percentiles")[..., 0]
    assert (image[0] == 0).all() and (image[3] == 255).all()


@pytest.mark.parametrize("normalization", ["minimum_maximum", "percentiles"])
@pytest.mark.parametrize(
    "values, complaint",
    [
        (np.zeros((4, 4, 3), np.uint8), "not an image"),  # the colour picture instead of depth
        (np.zeros((4, 4), np.uint8), "not an image"),
        (np.ones((4, 4), np.float32), "constant"),
        (np.full((4, 4), np.nan, np.float32), "finite"),
        (np.full((4, 4), np.inf, np.float32), "finite"),
    ],
)
def test_unusable_control_maps_are_refused(values, complaint, normalization):
    with pytest.raises(worker.ItemError, match=complaint):
        worker.control_image(values, normalization)


def test_control_maps_match_their_image_and_are_not_pickles(tmp_path):
    path = tmp_path / "control.npy"
    np.save(path, np.random.default_rng(0).random((6, 4), np.float32))
    assert worker.read_control(path, (6, 4), "minimum_maximum").size == (4, 6)
    with pytest.raises(worker.ItemError, match=r"\(6, 4\), but its image has \(4, 6\)"):
        worker.read_control(path, (4, 6), "minimum_maximum")
    np.save(path, np.array([object()]), allow_pickle=True)
    with pytest.raises(worker.ItemError, match="cannot be read"):
        worker.read_control(path, (6, 4), "minimum_maximum")
    with pytest.raises(worker.ItemError, match="cannot be read"):
        worker.read_control(tmp_path / "none.npy", (6, 4), "minimum_maximum")


def test_clean_images_have_8_bits_and_the_expected_size(tmp_path):
    """Pillow would clip 16 bits at 255."""
    path = tmp_path / "clean.png"
    Image.fromarray(np.full((4, 6), 3000, np.uint16)).save(path)
    with pytest.raises(worker.ItemError, match="8 bits"):
        worker.read_image(path, (4, 6))
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(path)
    assert worker.read_image(path, (4, 6)).mode == "RGB"
    with pytest.raises(worker.ItemError, match="4x6 pixels, not"):
        worker.read_image(path, (6, 4))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(worker.ItemError, match="cannot be read"):
        worker.read_image(path, (4, 6))


def test_an_image_is_written_whole_or_not_at_all(tmp_path):
    output, temporary = tmp_path / "out.png", tmp_path / ".out.part"
    output.write_text("before")
    image = Image.new("RGB", (4, 4))
    with pytest.raises(OSError, match=r"No such file|Is a directory|Not a directory"):
        worker.save(image, tmp_path / "missing" / "part", output)
    assert output.read_text() == "before"
    image.save = None  # fails midway
    with pytest.raises(TypeError):
        worker.save(image, temporary, output)
    assert output.read_text() == "before" and not temporary.exists()
    worker.save(Image.new("RGB", (4, 4)), temporary, output)
    assert worker.read_image(output, (4, 4)).size == (4, 4) and not temporary.exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the Hub's client: the files of its one repository, and the local snapshot."""
    online: list[str] = []

    def download(repository, *, allow_patterns, ignore_patterns):
        for name in online:
            ignored = any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns)
            if not ignored and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).touch()
        return str(tmp_path)

    client = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    return online


def fetched(folder, **wanted):
    replies: list[object] = []
    base = {"repository": "owner/name", "kind": "base", **wanted}
    found = worker.fetch({"base": base}, lambda **reply: replies.append(reply))
    assert found == {"base": str(folder)}
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}


def test_weights_that_an_earlier_download_left_out_are_fetched_later(hub, tmp_path):
    parts = ("unet", "vae", "text_encoder", "text_encoder_2", "safety_checker")
    hub += [f"{part}/{name}" for part in parts for name in ("config.json", "a.safetensors")]
    hub += ["unet/a.bin", "unet/a.fp16.safetensors", "vae/a.onnx"]
    expected = {name for name in hub[:10] if not name.startswith("safety_checker")}
    assert fetched(tmp_path, without=["safety_checker/*"]) == expected
    assert fetched(tmp_path) == set(hub[:10])
    assert fetched(tmp_path, without=["safety_checker/*"]) == set(hub[:10])
    (tmp_path / "text_encoder_2/a.safetensors").unlink()  # as after an interruption
    assert fetched(tmp_path) == set(hub[:10])


def test_pickles_are_fetched_only_for_parts_without_other_weights(hub, tmp_path):
    hub += ["unet/config.json", "unet/a.safetensors", "unet/a.bin", "vae/config.json", "vae/a.bin"]
    assert fetched(tmp_path) == set(hub) - {"unet/a.bin"}
