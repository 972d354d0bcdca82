"""The formats in which predictions are written."""

import sys

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data import geometry
from diffdepth_jax.data import io as data_io
from diffdepth_jax.errors import ConfigError, FileError, MissingPackageError
from diffdepth_jax.inference import results
from diffdepth_jax.inference.point_cloud import Camera
from diffdepth_jax.inference.results import Results
from tests.inference.ply import read_ply
from tests.inference.small_model import image

RNG = np.random.default_rng(0)
DEPTH = RNG.uniform(1, 60, (16, 24)).astype(np.float32)
DEPTH[2, 3] = np.nan
SPREAD = RNG.uniform(0.1, 1, (16, 24)).astype(np.float32)


@pytest.mark.parametrize(
    "formats, spread, expected",
    [
        (("png", "npy"), False, "a.npy a.png a_colour.png"),
        (("npy",), True, "a.npy a_spread.npy"),
        (("ply", "exr"), True, "a.exr a.ply a_spread.exr"),
        (("png",), True, "a.png a_colour.png a_spread.png"),
        (("ply", "ply"), False, "a.ply"),
    ],
)
def test_every_format_has_its_files(tmp_path, formats, spread, expected):
    if "exr" in formats:
        pytest.importorskip("OpenEXR")
    written = Results("metric_depth", formats)
    written.write(tmp_path / "new" / "a", DEPTH, SPREAD if spread else None, image(16, 24))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == expected.split()
    assert {"a" + ending for ending in written.endings(spread=spread)} == set(expected.split())


@pytest.mark.parametrize("output, channel", [("metric_depth", "Z"), ("relative_disparity", "Y")])
def test_exr_holds_the_values_and_names_their_channel(tmp_path, output, channel):
    openexr = pytest.importorskip("OpenEXR")
    Results(output, ("exr",)).write(tmp_path / "a.b", DEPTH, SPREAD, image(16, 24))
    np.testing.assert_array_equal(data_io.read_exr(tmp_path / "a.b.exr"), DEPTH)
    np.testing.assert_array_equal(data_io.read_exr(tmp_path / "a.b_spread.exr"), SPREAD)
    with openexr.File(str(tmp_path / "a.b.exr"), separate_channels=True) as file:
        assert list(file.channels()) == [channel]
        assert file.channels()[channel].pixels.dtype == np.float32
        assert file.header()["comments"] == results.WHAT[output]


def test_a_point_cloud_has_the_depth_the_colours_and_the_camera(tmp_path):
    picture = image(16, 24)
    camera = Camera(field_of_view=75)
    Results("metric_depth", ("ply",), camera).write(tmp_path / "a", DEPTH, None, picture)
    vertices, comments = read_ply((tmp_path / "a.ply").read_bytes())
    points = np.stack([vertices[axis] for axis in "xyz"], -1)
    valid = np.isfinite(DEPTH)
    again = geometry.projected_depth(points, camera.matrix(16, 24), (16, 24))
    np.testing.assert_allclose(again, np.where(valid, DEPTH, 0), rtol=1e-6)
    stored = np.stack([vertices[name] for name in ("red", "green", "blue")], -1)
    np.testing.assert_array_equal(stored, picture[valid])
    assert any("assumed horizontal field of view: 75 degrees" in line for line in comments)
    assert any("metres" in line for line in comments)


def test_relative_disparity_gives_no_point_cloud():
    with pytest.raises(ConfigError, match=r"needs depth in metres.*use a network"):
        Results("relative_disparity", ("npy", "ply"))


def test_an_unknown_format_is_refused():
    with pytest.raises(ConfigError, match="no format 'jpg'; choose from png, npy, exr, ply"):
        Results("metric_depth", ("png", "jpg"))


def test_a_missing_exr_package_is_an_error_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'diffdepth_jax\[exr\]'"):
        Results("metric_depth", ("exr",))


def test_an_exr_that_cannot_be_written_leaves_nothing(tmp_path):
    pytest.importorskip("OpenEXR")
    (tmp_path / "a.exr").mkdir()
    with pytest.raises(FileError, match=r"a\.exr cannot be written"):
        results.write_exr(tmp_path / "a.exr", DEPTH, "Z", "metres")
    assert [path.name for path in tmp_path.iterdir()] == ["a.exr"]
    with pytest.raises(FileError, match=r"absent.*no folder"):
        results.write_exr(tmp_path / "absent" / "a.exr", DEPTH, "Z", "metres")


def test_frames_of_a_video_have_no_colour_pictures(tmp_path):
    Results("metric_depth", pictures=False).write(tmp_path / "0", DEPTH, None, image(16, 24))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npy", "0.png"]
    with Image.open(tmp_path / "0.png") as picture:
        assert picture.getpixel((3, 2)) == 0  # NaN
