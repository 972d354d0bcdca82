"""Writers of tiny data sets in the official layouts, with values that tests can predict.

A pytest plugin, see `conftest.py`: every test can use its fixtures.
"""

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
    """An image, and uint16 depth with about half of the pixels unmeasured."""
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
    """Writes `nyu_depth_v2_labeled.mat` with some frames, and `splits.mat`; returns the root.

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
        # Imported here because they take a second to import.
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
    """The image and the stored depth that the writers use for frame `number`."""
    return frame


# ---- Booster -------------------------------------------------------------------------------------

BOOSTER_SIZE = (12, 16)
BOOSTER_FX, BOOSTER_BASELINE = 20.0, 0.0625  # pixels, metres

# As OpenCV's FileStorage writes it; the numbers are made up.
BOOSTER_CALIBRATION = """<?xml version="1.0"?>
<opencv_storage>
<mtxL type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt>
  <data>1. 0. 0. 0. 1. 0. 0. 0. 1.</data></mtxL>
<proj_matL type_id="opencv-matrix">
  <rows>3</rows>
  <cols>4</cols>
  <dt>d</dt>
  <data>
    20. 0. 7.25 0. 0. 2.1e+01 5.5 0.
    0. 0. 1. 0.</data></proj_matL>
<baselineLR>6.25e+01</baselineLR>
</opencv_storage>
"""


def booster_scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Disparity with unknown pixels, and classes."""
    rng = np.random.default_rng(number)
    disparity = rng.uniform(1, 40, BOOSTER_SIZE).astype(np.float32)
    disparity[0, :4] = [0, np.inf, np.nan, -1]
    return disparity, rng.integers(0, 4, BOOSTER_SIZE, dtype=np.uint8)


@pytest.fixture
def booster_root(tmp_path: Path) -> Path:
    """Two scenes in the official layout; the second has twelve images."""
    for number, (name, count) in enumerate({"Bathroom": 2, "Vodka": 12}.items()):
        folder = tmp_path / "train" / "balanced" / name
        (folder / "camera_00").mkdir(parents=True)
        (folder / "camera_02").mkdir()
        disparity, classes = booster_scene(number)
        for index in range(count):
            image = np.full((*BOOSTER_SIZE, 3), 10 * index, np.uint8)
            for camera in ("camera_00", "camera_02"):
                Image.fromarray(image).save(folder / camera / f"im{index}.png")
        np.save(folder / "disp_00.npy", disparity)
        Image.fromarray(classes).save(folder / "mask_cat.png")
        (folder / "calib_00-02.xml").write_text(BOOSTER_CALIBRATION)
    return tmp_path


# ---- ClearGrasp ----------------------------------------------------------------------------------

CLEARGRASP_SIZE = (10, 16)
CLEARGRASP_CAMERA = """# Camera Intrinsic Parameters
camera_name: 'D435'
xres: 16           # Image Width
yres: 10           # Image Height
fx: 21.5             # Focal length in pixels along width
fy: 22
cx: 7.5
cy: 4.5
"""


def cleargrasp_frame(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    depth = rng.uniform(0.3, 1.5, CLEARGRASP_SIZE).astype(np.float16)
    depth[0, :2], depth[1, :3] = np.nan, 0
    image = np.full((*CLEARGRASP_SIZE, 3), rng.integers(0, 256, 3), np.uint8)  # survives JPEG
    return image, depth, rng.integers(0, 2, CLEARGRASP_SIZE, dtype=np.uint8) * 255


def _save_cleargrasp(number: int, image_path: Path, depth_path: Path, mask_path: Path) -> None:
    import OpenEXR  # optional

    image, depth, mask = cleargrasp_frame(number)
    for path in (image_path, depth_path, mask_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(image_path, quality=95)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"RGB": np.stack([depth] * 3, -1)}) as file:
        file.write(str(depth_path))
    Image.fromarray(mask).save(mask_path)


def _save_real(folder: Path, number: int) -> None:
    stem = f"{number:09d}"
    names = ("transparent-rgb-img.jpg", "opaque-depth-img.exr", "mask.png")
    _save_cleargrasp(number, *(folder / f"{stem}-{name}" for name in names))
    (folder / "camera_intrinsics.yaml").write_text(CLEARGRASP_CAMERA)
    Image.new("RGB", CLEARGRASP_SIZE[::-1]).save(folder / f"{stem}-opaque-rgb-img.jpg")  # not read


def _save_synthetic(folder: Path, number: int) -> None:
    stem = f"{number:09d}"
    _save_cleargrasp(
        number,
        folder / "rgb-imgs" / f"{stem}-rgb.jpg",
        folder / "depth-imgs-rectified" / f"{stem}-depth-rectified.exr",
        folder / "segmentation-masks" / f"{stem}-segmentation-mask.png",
    )


@pytest.fixture
def cleargrasp_root(tmp_path: Path) -> Path:
    pytest.importorskip("OpenEXR")
    for folder, number in (("real-test/d415", 0), ("real-test/d435", 0), ("real-val/d435", 3)):
        _save_real(tmp_path / folder, number)
    _save_synthetic(tmp_path / "synthetic-val" / "cup-with-waves-val", 0)
    _save_synthetic(tmp_path / "synthetic-test" / "tree-bath-bomb-test", 1)
    _save_synthetic(tmp_path / "cup-with-waves-train", 2)
    return tmp_path
