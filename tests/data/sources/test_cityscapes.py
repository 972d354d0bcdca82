import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import cityscapes
from diffdepth_jax.errors import DataError, MissingFileError

SIZE = (16, 32)
CAMERA = {
    "extrinsic": {"baseline": 0.2, "pitch": 0.03, "roll": 0, "x": 1.7, "y": 0.1, "z": 1.2},
    "intrinsic": {"fx": 2262.5, "fy": 2265.25, "u0": 1096.5, "v0": 513.125},
}


@pytest.fixture
def root(tmp_path: Path, make_frame: Callable, save_image: Callable) -> Path:
    for number, name in enumerate(("aachen_000000_000019", "bochum_000000_000313")):
        folder = f"train/{name[:6]}/{name}"
        image, disparity = make_frame(number, SIZE)
        save_image(tmp_path / f"leftImg8bit/{folder}_leftImg8bit.png", image)
        disparity[0, :3] = [0, 1, 2]
        save_image(tmp_path / f"disparity/{folder}_disparity.png", disparity)
        path = tmp_path / f"camera/{folder}_camera.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(CAMERA))
    return tmp_path


def test_values(root: Path, make_frame: Callable, check_contract: Callable) -> None:
    frames = cityscapes.source("train", root)
    check_contract(frames)
    assert [frame["id"] for frame in frames] == ["aachen_000000_000019", "bochum_000000_000313"]
    image, stored = make_frame(1, SIZE)
    stored[0, :3] = [0, 1, 2]
    np.testing.assert_array_equal(frames[1]["image"], image)
    expected = np.zeros(SIZE)
    for row, column in np.argwhere(stored > 1):
        expected[row, column] = 2262.5 * 0.2 / ((float(stored[row, column]) - 1) / 256)
    np.testing.assert_allclose(frames[1]["depth"], expected, rtol=1e-5)
    assert (frames[1]["depth"][0, :2] == 0).all() and frames[1]["depth"][0, 2] > 1e5
    np.testing.assert_array_equal(
        frames[1]["intrinsics"], [[2262.5, 0, 1096.5], [0, 2265.25, 513.125], [0, 0, 1]]
    )


def test_images_alone(root: Path, check_contract: Callable) -> None:
    (root / "disparity").rename(root / "gone")
    frame = cityscapes.source("train", root, depth="none")[0]
    assert not frame["depth"].any() and frame["intrinsics"][0, 0] == 2262.5
    (root / "camera").rename(root / "gone_too")
    alone = cityscapes.source("train", root, depth="none")
    check_contract(alone)
    assert np.isnan(alone[0]["intrinsics"]).all()


def test_bad_input(root: Path) -> None:
    with pytest.raises(MissingFileError, match=r"val .*unpack leftImg8bit, disp"):
        cityscapes.source("val", root)
    path = root / "camera/train/aachen/aachen_000000_000019_camera.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"camera\.json"):
        cityscapes.source("train", root)[0]
    for text in ('{"intrinsic": {}}', "[]", '{"intrinsic": {"fx": "a"}}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"camera\.json.*intrinsic"):
            cityscapes.source("train", root)[0]
    path.unlink()
    with pytest.raises(MissingFileError, match=r"1 of 6 files of split 'train' .*camera\.json"):
        cityscapes.source("train", root)
    with pytest.raises(ValueError, match="depth is 'lidar'"):
        cityscapes.Config(depth="lidar")
