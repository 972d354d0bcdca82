import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data import io
from diffdepth_jax.data.sources import nuscenes
from diffdepth_jax.errors import DataError, MissingFileError

SIZE = (20, 32)
INTRINSICS = [[20.0, 0, 15], [0, 20.0, 10], [0, 0, 1]]
# The camera looks along the car's x axis: its z is the car's x, its x is minus the car's y.
CAMERA = dict(rotation=[0.5, -0.5, 0.5, -0.5], translation=[1.0, 0.0, 1.5])
SCENES = {
    "scene-0061": "Parked truck, construction",
    "scene-0655": "Rain, parking lot",
    "scene-1077": "Night, big street",
    "scene-1100": "Night after rain, peds",
}


def write(
    root: Path, make_frame: Callable, save_image: Callable, version: str = "v1.0-mini"
) -> Path:
    """One sample per scene; the car drives 2 m between the scan and the image."""
    tables: dict[str, list[dict]] = {name: [] for name in ("scene", "sample", "sample_data")}
    tables["sensor"] = [
        {"token": "s0", "channel": "LIDAR_TOP", "modality": "lidar"},
        {"token": "s1", "channel": "CAM_FRONT", "modality": "camera"},
        {"token": "s2", "channel": "CAM_BACK", "modality": "camera"},
    ]
    # The lidar is rotated by 90 degrees about z: its y axis points forward.
    half = math.sqrt(0.5)
    tables["calibrated_sensor"] = [
        {
            "token": "c0",
            "sensor_token": "s0",
            "rotation": [half, 0, 0, -half],
            "translation": [1, 0, 1.5],
            "camera_intrinsic": [],
        },
        {"token": "c1", "sensor_token": "s1", "camera_intrinsic": INTRINSICS, **CAMERA},
        {"token": "c2", "sensor_token": "s2", "camera_intrinsic": INTRINSICS, **CAMERA},
    ]
    tables["ego_pose"] = []
    for number, (name, description) in enumerate(SCENES.items()):
        tables["scene"].append({"token": f"t{number}", "name": name, "description": description})
        tables["sample"].append({"token": f"sample{number}", "scene_token": f"t{number}"})
        # Somewhere in the world, heading north.
        for token, north in (("a", 0.0), ("b", 2.0)):
            pose = {"rotation": [half, 0, 0, half], "translation": [500.0, 900.0 + north, 0]}
            tables["ego_pose"].append({"token": f"{token}{number}", **pose})
        for channel, calibrated, pose, suffix in (
            ("LIDAR_TOP", "c0", "a", ".pcd.bin"),
            ("CAM_FRONT", "c1", "b", ".png"),
            ("CAM_BACK", "c2", "b", ".png"),
        ):
            row = {
                "token": f"d{number}{channel}",
                "sample_token": f"sample{number}",
                "calibrated_sensor_token": calibrated,
                "ego_pose_token": f"{pose}{number}",
                "filename": f"samples/{channel}/{number}__{channel}{suffix}",
                "is_key_frame": True,
                "height": SIZE[0] if suffix == ".png" else 0,
                "width": SIZE[1] if suffix == ".png" else 0,
            }
            sweep = {**row, "is_key_frame": False, "filename": "sweeps/none", "token": "x"}
            tables["sample_data"] += [row, sweep]
            if suffix == ".png":
                save_image(root / row["filename"], make_frame(number, SIZE)[0])
            else:
                # Ahead (the lidar's y) at 12 m, hidden by one at 7 m; to the left; behind.
                points = [[0, 12, 0, 9, 1], [0, 7, 0, 9, 2], [-2, 6, -1, 9, 3], [0, -9, 0, 9, 4]]
                (root / "samples" / channel).mkdir(parents=True, exist_ok=True)
                np.array(points, np.float32).tofile(root / row["filename"])
    for name, rows in tables.items():
        (root / version).mkdir(exist_ok=True)
        (root / version / f"{name}.json").write_text(json.dumps(rows, indent=0))
    return root


@pytest.fixture
def root(tmp_path: Path, make_frame: Callable, save_image: Callable) -> Path:
    return write(tmp_path, make_frame, save_image)


def ids(frames: nuscenes.FrameSource) -> list[str]:
    return [frame["id"] for frame in frames]


def change(path: Path, edit: Callable[[list[dict]], object]) -> None:
    rows = json.loads(path.read_text())
    edit(rows)
    path.write_text(json.dumps(rows))


def test_values(root: Path, make_frame: Callable, check_contract: Callable) -> None:
    frames = nuscenes.source("mini_train", root)
    check_contract(frames)
    assert ids(frames) == [f"{number}__CAM_FRONT" for number in range(4)]
    expected = np.zeros(SIZE, np.float32)
    expected[10, 15] = 5.0  # 7 m ahead of the lidar, minus the 2 m driven
    expected[10 + 5, 15 - 10] = 4.0
    for number, frame in enumerate(frames):
        np.testing.assert_allclose(frame["depth"], expected, atol=1e-5)
        np.testing.assert_array_equal(frame["image"], make_frame(number, SIZE)[0])
        np.testing.assert_array_equal(frame["intrinsics"], INTRINSICS)
        assert (frame["depth"].dtype, frame["intrinsics"].dtype) == (np.float32, np.float32)
    conditions = [frame["condition"] for frame in frames]
    assert conditions == ["day-clear", "day-rain", "night-clear", "night-rain"]


def test_the_devkit_takes_the_last_point(root: Path) -> None:
    scan = root / "samples/LIDAR_TOP/0__LIDAR_TOP.pcd.bin"
    points = np.array([[0, 7.5, 0, 0, 0], [0, 12.5, 0, 0, 0], [0, 2.9, 0, 0, 0]], np.float32)
    points.tofile(scan)
    near, devkit = (
        nuscenes.source("mini_train", root, projection=rule)[0]["depth"]
        for rule in ("nearest", "devkit")
    )
    np.testing.assert_allclose([near[10, 15], devkit[10, 15]], [0.9, 10.5], rtol=1e-5)


def test_cameras_conditions_and_lists(root: Path, tmp_path: Path) -> None:
    both = nuscenes.source("mini_train", root, cameras=("CAM_BACK", "CAM_FRONT"))
    assert ids(both)[:3] == ["0__CAM_BACK", "0__CAM_FRONT", "1__CAM_BACK"]
    night = nuscenes.source("mini_train", root, conditions=("night-clear", "night-rain"))
    assert ids(night) == ["2__CAM_FRONT", "3__CAM_FRONT"]
    listed = tmp_path / "list.txt"
    listed.write_text("scene-1100\nsample1\n")
    frames = nuscenes.source(str(listed), root, version="v1.0-mini")
    assert ids(frames) == ["1__CAM_FRONT", "3__CAM_FRONT"]
    listed.write_text("scene-1100\nscene-7777\n")
    with pytest.raises(DataError, match=r"scene-7777"):
        nuscenes.source(str(listed), root, version="v1.0-mini")
    with pytest.raises(DataError, match=r"no frames in split 'mini_train' .* in unknown"):
        nuscenes.source("mini_train", root, conditions=("unknown",))
    with pytest.raises(DataError, match=r"scene-0103.*split 'mini_val'"):
        nuscenes.source("mini_val", root)


def test_official_splits_name_their_version(root: Path) -> None:
    with pytest.raises(MissingFileError, match=r"v1\.0-trainval .*unpack the meta"):
        nuscenes.source("val", root)
    (root / "v1.0-mini").rename(root / "v1.0-trainval")
    change(root / "v1.0-trainval/scene.json", lambda rows: rows[0].update(name="scene-0003"))
    assert ids(nuscenes.source("val", root)) == ["0__CAM_FRONT"]
    (root / "v1.0-trainval").rename(root / "v1.0-test")
    path = root / "v1.0-test/scene.json"
    change(path, lambda rows: rows[0].update(name="scene-0077", description=""))
    assert nuscenes.source("test", root)[0]["condition"] == "unknown"
    change(path, lambda rows: rows[0].update(description=None))
    assert nuscenes.source("test", root)[0]["condition"] == "unknown"


@pytest.mark.parametrize(
    ("table", "edit", "message"),
    [
        ("sample", lambda rows: rows[1].update(scene_token="z"), "sample1 has no match in scene"),
        ("sample_data", lambda rows: rows.pop(0), r"sample0 has no match in sample_data \(LIDAR"),
        ("ego_pose", lambda rows: rows.pop(2), "d1LIDAR_TOP has no match in ego_pose"),
        ("calibrated_sensor", lambda rows: rows.pop(1), "d0CAM_FRONT has no match in calibrated"),
        ("sensor", lambda rows: rows.pop(1), "d0CAM_FRONT has no match in calibrated"),
        (
            "ego_pose",
            lambda rows: rows[0].pop("rotation"),
            r"ego_pose\.json: .* no field 'rotation'",
        ),
        ("ego_pose", lambda rows: rows.insert(0, 7), r"ego_pose\.json: 7 has no field"),
        (
            "ego_pose",
            lambda rows: rows[0].update(rotation=[0, 0, 0, 0]),
            r"ego_pose\.json: \w+: a pose is a quaternion .*damaged",
        ),
        (
            "calibrated_sensor",
            lambda rows: rows[1].update(camera_intrinsic=[1, 2]),
            r"calibrated_sensor\.json: c1: cannot reshape .*damaged",
        ),
    ],
)
def test_tables_that_contradict_each_other(
    root: Path, table: str, edit: Callable, message: str
) -> None:
    change(root / f"v1.0-mini/{table}.json", edit)
    with pytest.raises(DataError, match=message):
        nuscenes.source("mini_train", root)


def test_broken_files(root: Path) -> None:
    path = root / "v1.0-mini/ego_pose.json"
    text = path.read_text()
    for broken in (
        text[:-1],
        text[: len(text) // 2],
        "",
        "{}",
        text.replace('"token"', '"token', 1),
    ):
        path.write_text(broken)
        with pytest.raises(DataError, match=r"ego_pose\.json.*download it again"):
            nuscenes.source("mini_train", root)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"ego_pose\.json"):
        nuscenes.source("mini_train", root)
    path.write_text(text)
    image = root / "samples/CAM_FRONT/1__CAM_FRONT.png"
    Image.open(image).resize((16, 10)).save(image)
    with pytest.raises(DataError, match=r"is 10x16.*20x32"):
        nuscenes.source("mini_train", root)[1]
    scan = root / "samples/LIDAR_TOP/1__LIDAR_TOP.pcd.bin"
    scan.write_bytes(scan.read_bytes()[:30])
    with pytest.raises(DataError, match=r"pcd\.bin has 30 bytes.*20"):
        nuscenes.source("mini_train", root, cameras=("CAM_BACK",))[1]
    scan.unlink()
    with pytest.raises(MissingFileError, match=r"1 of 8 files .*1__LIDAR_TOP\.pcd\.bin"):
        nuscenes.source("mini_train", root)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"conditions has 'fog'.*day-clear"):
        nuscenes.Config(conditions=("fog",))
    for cameras in ((), ("CAM_FRONT", "CAM_TOP")):
        with pytest.raises(ValueError, match=r"cameras is .*CAM_FRONT"):
            nuscenes.Config(cameras=cameras)
    with pytest.raises(ValueError, match="projection is 'last'"):
        nuscenes.Config(projection="last")


def test_tables_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"token": f"{number}", "text": "\u00e9]},{[" * (number % 5)} for number in range(50)]
    path = tmp_path / "rows.json"
    for indent in (None, 1):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
        for piece in (64, 101, 1 << 20):
            monkeypatch.setattr(io, "_PIECE", piece)
            assert list(io.read_json_rows(path, ("token", "text"))) == rows


def rotated(quaternion: list[float], vector: np.ndarray) -> np.ndarray:
    """q v q*, with quaternions multiplied out."""

    def multiply(p: list[float], q: list[float]) -> list[float]:
        a, b, c, d = p
        e, f, g, h = q
        return [
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        ]

    w, x, y, z = quaternion
    return np.array(multiply(multiply([w, x, y, z], [0, *vector]), [w, -x, -y, -z])[1:])


def test_real_frame(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The official chain, point by point: lidar, car, world, car at the image's time, camera."""
    root = shared / "data/nuscenes"
    with caplog.at_level(logging.WARNING):
        (frame,) = nuscenes.source("mini_train", root)
    assert "has 1 of the 8 scenes of split mini_train" in caplog.text
    assert frame["image"].shape == (900, 1600, 3) and frame["condition"] == "day-clear"

    def rows(name: str) -> dict[str, dict]:
        return {row["token"]: row for row in io.read_json(root / f"v1.0-mini/{name}.json")}

    data, poses, mountings = rows("sample_data"), rows("ego_pose"), rows("calibrated_sensor")
    scan, image = (
        next(row for row in data.values() if f"/{name}/" in row["filename"])
        for name in ("LIDAR_TOP", "CAM_FRONT")
    )
    steps = [mountings[scan["calibrated_sensor_token"]], poses[scan["ego_pose_token"]]]
    back = [poses[image["ego_pose_token"]], mountings[image["calibrated_sensor_token"]]]
    intrinsics = np.array(back[1]["camera_intrinsic"])
    expected = np.zeros((900, 1600))
    points = np.fromfile(root / scan["filename"], np.float32).reshape(-1, 5)[:, :3]
    for point in points.astype(np.float64):
        for step in steps:
            point = rotated(step["rotation"], point) + step["translation"]
        for step in back:
            w, x, y, z = step["rotation"]
            point = rotated([w, -x, -y, -z], point - step["translation"])
        if point[2] > 0:
            u, v, _ = intrinsics @ point / point[2]
            column, row = math.floor(u + 0.5), math.floor(v + 0.5)
            if 0 <= row < 900 and 0 <= column < 1600:
                expected[row, column] = min(expected[row, column] or np.inf, point[2])
    assert abs((frame["depth"] > 0).mean() - (expected > 0).mean()) < 1e-4
    np.testing.assert_allclose(frame["depth"], expected, rtol=1e-5)
    assert (frame["depth"] > 0).sum() == 3059


def test_every_real_camera(shared: Path) -> None:
    cameras = nuscenes.Camera.__args__
    frames = nuscenes.source("mini_train", shared / "data/nuscenes", cameras=cameras)
    counts = [int((frame["depth"] > 0).sum()) for frame in frames]
    assert counts == [3059, 3699, 3079, 4825, 4096, 3376]
