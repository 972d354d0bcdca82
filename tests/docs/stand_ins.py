"""What the documentation's blocks run on: a clone with small runs, weights, photos and data sets.

Weights are random, of small networks under the published names; data sets have the official layout.
Images come from the committed sample.
"""

import json
import shutil
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffdepth_jax import config as config_lib
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.inference.export import export
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.weights import files
from tests.inference.videos import make_video
from tests.training.pairs import teacher, write_pairs
from tests.weights.torch_writer import whole, write_zip

PROJECT = Path(__file__).resolve().parents[2]
MORE_FILES = (PROJECT / "Makefile", PROJECT / "pyproject.toml")
RUNS = {
    "demo": "diffusion_depth",
    "kitti": "diffusion_depth",
    "mine": "diffusion_depth",
    "control": "regression",
}
# The fields that a published file of that name implies.
WEIGHTS = {
    "depth_anything_vitl14.pth": ("depth_anything", {"max_depth": None}),
    "depth_anything_v2_vits.pth": ("depth_anything", {"max_depth": None, "version": 2}),
    "depth_anything_v2_metric_hypersim_vits.pth": (
        "depth_anything",
        {"max_depth": 20.0, "version": 2},
    ),
    "dpt_large_384.pt": ("dpt", {}),
    "ZoeD_M12_NK.pt": ("zoedepth", {}),
    "kitti.pt": ("diffusion_depth", {}),
    "renamed.pth": ("depth_anything", {"max_depth": 20.0, "version": 2}),
}


def write(root: Path) -> None:
    """Fills an empty folder."""
    for name in ("benchmarks", "configs", "docs", "results", "sample", "studies", "tools"):
        (root / name).symlink_to(PROJECT / name)
    for path in (*PROJECT.glob("*.py"), *PROJECT.glob("requirements*.txt"), *MORE_FILES):
        (root / path.name).symlink_to(path)
    for name, network in RUNS.items():
        write_run(root / "runs" / name, teacher(network))
    (root / "weights").mkdir()
    for name, (network, fields) in WEIGHTS.items():
        write_torch(root / "weights" / name, teacher(network, **fields))
    export(teacher("diffusion_depth"), root / "weights" / "mine.safetensors")
    transformers = root / "weights" / "depth-anything-small-hf"
    export(teacher("depth_anything", max_depth=None), transformers, "transformers")
    write_photos(root)
    write_kitti(root / "data" / "kitti_raw", root / "data" / "kitti_depth")
    write_nyu(root / "data" / "nyu")
    write_own(root / "data" / "mine")
    write_pairs(root / "runs" / "adverse", relative=True)
    write_maps(root)


def write_run(workdir: Path, model: DepthModel) -> None:
    """A run directory with one checkpoint."""
    state = TrainState(
        jnp.int32(2), model.variables["params"], model.variables.get("batch_stats", {}), {}, {}
    )
    config = {"model": config_lib.to_mapping(model.config)}
    with Checkpointer(workdir, keep=1) as checkpointer:
        checkpointer.save(2, jax.tree.map(jnp.asarray, state), config, b"{}", {})
    (workdir / "config.json").write_text(json.dumps(config))


def write_torch(path: Path, model: DepthModel) -> None:
    """Weights as PyTorch saves them."""
    written = path.with_suffix(".safetensors")
    export(model, written)
    arrays = files.read(written).state_dict
    written.unlink()
    storages = {str(number): np.asarray(array) for number, array in enumerate(arrays.values())}
    value = {name: whole(*each) for name, each in zip(arrays, storages.items(), strict=True)}
    write_zip(path, value, storages)


def sample_frames(count: int | None = 2) -> list[tuple[Path, Path]]:
    """Images and exact depth of some validation streets; None: of all."""
    depths = sorted((PROJECT / "sample/depth/val").glob("*/proj_depth/dense/image_02/*.png"))
    found = []
    for depth in depths[:count]:
        drive = depth.parts[-5]
        image = PROJECT / "sample/raw" / drive[:10] / drive / "image_02/data"
        found.append((image / f"{depth.stem}.jpg", depth))
    return found


def write_photos(root: Path) -> None:
    (root / "photos").mkdir()
    for number, (image, _) in enumerate(sample_frames()):
        shutil.copy(image, root / "photos" / f"street_{number}.jpg")
    shutil.copy(root / "photos" / "street_0.jpg", root / "street.jpg")
    with Image.open(root / "street.jpg") as picture:
        make_video(root / "clip.mp4", [np.asarray(picture)] * 2)


def write_kitti(raw: Path, depth: Path) -> None:
    """Frames of the sample at KITTI's size and under its names."""
    for part, number in (("train", 1), ("val", 2)):
        drive = f"2011_09_26_drive_{number:04d}_sync"
        for index, (image, exact) in enumerate(sample_frames()):
            name = f"{index:010d}.png"
            folders = (
                raw / "2011_09_26" / drive / "image_02" / "data",
                depth / part / drive / "proj_depth" / "groundtruth" / "image_02",
            )
            for folder, source in zip(folders, (image, exact), strict=True):
                folder.mkdir(parents=True, exist_ok=True)
                with Image.open(source) as picture:
                    picture.resize((1242, 375), Image.Resampling.NEAREST).save(folder / name)
    calibration = PROJECT / "sample/raw/2000_01_03/calib_cam_to_cam.txt"
    shutil.copy(calibration, raw / "2011_09_26" / calibration.name)


def write_nyu(root: Path) -> None:
    """Frames in the layout of sparse-to-dense's `.h5` files."""
    rng = np.random.default_rng(0)
    for folder in ("train/kitchen_0001a", "val/official"):
        (root / folder).mkdir(parents=True)
        for number in range(2):
            with h5py.File(root / folder / f"{number:05d}.h5", "w") as file:
                file["rgb"] = rng.integers(0, 256, (3, 480, 640), np.uint8)
                file["depth"] = rng.uniform(0.5, 9.0, (480, 640)).astype(np.float32)


def write_own(root: Path) -> None:
    """A user's folder: JPEG, and depth in millimetres."""
    for part in ("train", "val"):
        for number, (image, depth) in enumerate(sample_frames()):
            for folder in ("image", "depth"):
                (root / part / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, root / part / "image" / f"{number:04d}.jpg")
            metres = np.asarray(Image.open(depth)) / 256
            millimetres = np.where(metres < 60, 1000 * metres, 0).astype(np.uint16)
            Image.fromarray(millimetres).save(root / part / "depth" / f"{number:04d}.png")


def write_maps(root: Path) -> None:
    """Measured depth and a model's predictions, 10% too far; also predictions for the sample."""
    for image, _ in sample_frames(None):
        path = root / "demo_predictions" / image.relative_to(PROJECT / "sample/raw")
        path.parent.mkdir(parents=True)
        np.save(path.with_suffix(".npy"), np.full((64, 208), 20.0, np.float32))
    for name in ("ground_truth", "predictions"):
        (root / name).mkdir()
    for number, (_, depth) in enumerate(sample_frames()):
        with Image.open(depth) as picture:
            full = picture.resize((1242, 375), Image.Resampling.NEAREST)
        full.save(root / "ground_truth" / f"{number:04d}.png")
        metres = np.maximum(np.asarray(full), 256).astype(np.float32) / 256
        np.save(root / "predictions" / f"{number:04d}.npy", 1.1 * metres)
