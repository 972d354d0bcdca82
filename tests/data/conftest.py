"""Writers of tiny data sets in the official layouts, with values that the tests can predict."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

CALIBRATION = """\
calib_time: 09-Jan-2012 13:57:47
S_02: 1.392000e+03 5.120000e+02
K_02: 9.0e+02 0.0e+00 6.0e+02 0.0e+00 9.0e+02 2.0e+02 0.0e+00 0.0e+00 1.0e+00
P_rect_02: 7.2e+02 0.0 6.0e+02 4.5e+01 0.0 7.1e+02 1.7e+02 2.2e-01 0.0 0.0 1.0 2.7e-03
P_rect_03: 7.3e+02 0.0 6.1e+02 -3.4e+02 0.0 7.4e+02 1.8e+02 2.2e+00 0.0 0.0 1.0 2.7e-03
"""


def frame(number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image, and depth as uint16 with about half of the pixels unmeasured."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    depth = rng.integers(256, 80 * 256, size, dtype=np.uint16) * rng.integers(0, 2, size, np.uint16)
    return image, depth


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def write_kitti(tmp_path: Path) -> Callable[..., Path]:
    """Writes frames (drive, camera, number) as the official archives unpack; returns the root."""

    def write(
        frames: list[tuple[str, str, int]],
        part: str = "train",
        *,
        root: Path = tmp_path,
        depth_root: Path | None = None,
        size: tuple[int, int] = (24, 60),
        calibrated: bool = True,
        depth_name: str = "groundtruth",
        image_suffix: str = ".png",
    ) -> Path:
        for drive, camera, number in frames:
            image, depth = frame(number, size)
            date, name = root / drive[:10], f"{number:010d}"
            save(date / drive / camera / "data" / f"{name}{image_suffix}", image)
            folder = (depth_root or root) / part / drive / "proj_depth" / depth_name / camera
            save(folder / f"{name}.png", depth)
            if calibrated:
                (date / "calib_cam_to_cam.txt").write_text(CALIBRATION)
        return root

    return write


@pytest.fixture
def write_nyu(tmp_path: Path) -> Callable[..., Path]:
    """Writes frames (scene, number) of one layout and split; returns the root."""

    def write(
        frames: list[tuple[str, int]], folder: str, layout: str, size: tuple[int, int] = (24, 32)
    ) -> Path:
        for scene, number in frames:
            image, depth = frame(number, size)
            directory = tmp_path / folder / scene
            directory.mkdir(parents=True, exist_ok=True)
            if layout == "h5":
                with h5py.File(directory / f"{number:05d}.h5", "w") as file:
                    file["rgb"] = np.moveaxis(image, -1, 0)
                    file["depth"] = depth.astype(np.float32) / 4096
            else:
                save(directory / f"rgb_{number:05d}.png", image)
                save(directory / f"sync_depth_{number:05d}.png", depth)
        return tmp_path

    return write


@pytest.fixture
def write_labelled_nyu(tmp_path: Path) -> Callable[..., Path]:
    """Writes `nyu_depth_v2_labeled.mat` of some frames, and `splits.mat`; returns the root.

    `depths` are the stored depth / 4096; `rawDepths` are half of them.
    """

    def write(
        count: int, train: list[int], test: list[int], size: tuple[int, int] = (24, 32)
    ) -> Path:
        frames = [frame(number, size) for number in range(count)]
        with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
            file["images"] = np.stack([image.transpose(2, 1, 0) for image, _ in frames])
            file["depths"] = np.stack([depth.T.astype(np.float32) / 4096 for _, depth in frames])
            file["rawDepths"] = file["depths"][()] / 2
        numbers = {"trainNdxs": train, "testNdxs": test}
        columns = {name: np.array(values)[:, None] for name, values in numbers.items()}
        scipy.io.savemat(tmp_path / "splits.mat", columns)
        return tmp_path

    return write


@pytest.fixture
def write_tfds_nyu(tmp_path: Path) -> Callable[..., Path]:
    """Writes what tensorflow-datasets' `nyu_depth_v2` leaves on disk; returns its data folder."""

    def write(numbers: list[int], split: str, size: tuple[int, int] = (24, 32)) -> Path:
        # Only here: they take a second to import.
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.proto import tf_example_pb2

        folder = tmp_path / "nyu_depth_v2" / "0.0.1"
        folder.mkdir(parents=True, exist_ok=True)
        core, shape = "tensorflow_datasets.core.features", [str(side) for side in size]
        features = {
            "depth": {
                "pythonClassName": f"{core}.tensor_feature.Tensor",
                "tensor": {"shape": {"dimensions": shape}, "dtype": "float16", "encoding": "none"},
            },
            "image": {
                "pythonClassName": f"{core}.image_feature.Image",
                "image": {"shape": {"dimensions": [*shape, "3"]}, "dtype": "uint8"},
            },
        }
        description = {
            "pythonClassName": f"{core}.features_dict.FeaturesDict",
            "featuresDict": {"features": features},
        }
        (folder / "features.json").write_text(json.dumps(description))
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        part = {
            "name": split,
            "shardLengths": [str(len(numbers))],
            "numBytes": "1",
            "filepathTemplate": template,
        }
        info = {
            "name": "nyu_depth_v2",
            "version": "0.0.1",
            "fileFormat": "array_record",
            "splits": [part],
        }
        (folder / "dataset_info.json").write_text(json.dumps(info))
        path = folder / f"nyu_depth_v2-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for number in numbers:
            image, depth = frame(number, size)
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            metres = (depth / 4096).astype(np.float16).ravel()
            example.features.feature["depth"].float_list.value.extend(metres.astype(float))
            writer.write(example.SerializeToString())
        writer.close()
        return tmp_path

    return write


@pytest.fixture
def make_frame() -> Callable[[int, tuple[int, int]], tuple[np.ndarray, np.ndarray]]:
    """The image and the stored depth that the writers give frame `number`."""
    return frame
