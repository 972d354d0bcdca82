"""Files of a prediction, and when they are deleted."""

import importlib.util
import os

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.app import predictions, results
from diffdepth_jax.app.predictions import Options
from diffdepth_jax.data import io
from diffdepth_jax.errors import FileError
from diffdepth_jax.inference.point_cloud import Camera


def test_pictures_and_downloads(denoising, upload, tmp_path):
    prediction = predictions.predict(denoising, upload, Options(num_samples=2))
    pictures = results.write_pictures(prediction, tmp_path / "new" / "shown")
    shown = [pictures.image, pictures.depth, pictures.spread, *pictures.steps]
    assert len(pictures.steps) == 2 and len(set(shown)) == 5
    for path in shown:
        with Image.open(path) as picture:
            assert picture.size == (38, 23)

    downloads = results.write_downloads(prediction, Camera(field_of_view=50), tmp_path / "new")
    by_name = {path.name: path for path in downloads}
    expected = {"street.png", "street.npy", "street.ply", "street_colour.png"}
    expected |= {"street_spread.npy", "street_spread.png"}
    if importlib.util.find_spec("OpenEXR"):
        expected |= {"street.exr", "street_spread.exr"}
    assert set(by_name) == expected
    np.testing.assert_array_equal(np.load(by_name["street.npy"]), prediction.depth)
    stored = io.read_depth_png(by_name["street.png"])
    np.testing.assert_allclose(stored, prediction.depth, atol=1 / 256)
    assert b"assumed horizontal field of view: 50 degrees" in by_name["street.ply"].read_bytes()


def test_no_point_cloud_of_relative_disparity_is_offered(relative, upload, tmp_path):
    prediction = predictions.predict(relative, upload, Options())
    downloads = results.write_downloads(prediction, Camera(), tmp_path)
    assert not any(path.suffix == ".ply" for path in downloads)
    assert results.write_pictures(prediction, tmp_path / "shown").spread is None

    depth = results.scene_depth(prediction)
    assert depth.min() == 1 and depth.max() == pytest.approx(results.FARTHEST_TO_NEAREST)
    order = np.argsort(prediction.depth.ravel())
    assert (np.diff(depth.ravel()[order]) <= 0).all()


def test_every_scene_has_a_unique_name(denoising, upload, tmp_path):
    prediction = predictions.predict(denoising, upload, Options())
    scenes = [results.write_scene(prediction, Camera(), tmp_path / "scene") for _ in range(2)]
    assert scenes[0][0] != scenes[1][0] and scenes[0][1] == scenes[1][1] > 0
    assert scenes[0][0].read_bytes() == scenes[1][0].read_bytes()
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(FileError, match="file/folder cannot be written"):
        results.write_scene(prediction, Camera(), blocked / "folder")


def test_old_and_excess_files_are_deleted(tmp_path, monkeypatch):
    for age, name in ((0, "new"), (100, "middle"), (3000, "old")):
        path = tmp_path / name / "file"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (5000 - age, 5000 - age))

    def left(now, most_bytes):
        monkeypatch.setattr(results, "MOST_BYTES", most_bytes)
        results.remove_old(tmp_path, now)
        return sorted(path.parent.name for path in tmp_path.rglob("file"))

    assert left(5000, 300) == ["middle", "new", "old"]
    assert left(2000 + results.LIFETIME + 1, 300) == ["middle", "new"]
    assert left(5000, 150) == ["new"]
    assert left(5000, 10) == ["new"]


def test_empty_folders_are_deleted_once_they_are_old(tmp_path):
    folder = tmp_path / "prediction/shown"
    folder.mkdir(parents=True)
    (tmp_path / "kept/shown").mkdir(parents=True)
    (tmp_path / "kept/shown/file").touch()
    results.remove_old(tmp_path, folder.stat().st_mtime)
    assert folder.is_dir()
    results.remove_old(tmp_path, folder.stat().st_mtime + 2 * results.LIFETIME)
    assert not folder.parent.exists() and (tmp_path / "kept/shown/file").exists()
