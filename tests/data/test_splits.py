from pathlib import Path

import numpy as np

from diffdepth_jax.data.splits import (
    EIGEN_TEST,
    EIGEN_TEST_WITHOUT_DEPTH,
    EIGEN_TRAIN,
    NUSCENES,
    zhou,
)


def pairs(frames: dict[str, tuple[int, ...]]) -> set[tuple[str, int]]:
    return {(drive, number) for drive, numbers in frames.items() for number in numbers}


def test_eigen_counts() -> None:
    assert len(EIGEN_TEST) == 28
    assert sum(map(len, EIGEN_TEST.values())) == 652
    assert sum(map(len, EIGEN_TEST_WITHOUT_DEPTH.values())) == 45
    assert not pairs(EIGEN_TEST) & pairs(EIGEN_TEST_WITHOUT_DEPTH)
    assert len(EIGEN_TRAIN) == 33
    assert not set(EIGEN_TRAIN) & set(EIGEN_TEST)


def test_eigen_is_the_published_division(shared: Path) -> None:
    folder = shared / "data/splits"
    lines = (folder / "marigold/kitti_depth/eigen_test_files_with_gt.txt").read_text().splitlines()
    published = {
        (image.split("/")[1], int(Path(image).stem), depth != "None")
        for image, depth, _ in map(str.split, lines)
    }
    ours = {(*pair, True) for pair in pairs(EIGEN_TEST)}
    assert published == ours | {(*pair, False) for pair in pairs(EIGEN_TEST_WITHOUT_DEPTH)}
    train = folder / "monodepth2/eigen_full/train_files.txt"
    drives = np.unique([line.split()[0].split("/")[1] for line in train.read_text().splitlines()])
    assert set(drives) == set(EIGEN_TRAIN)


def test_zhou_counts() -> None:
    train, val = zhou("train"), zhou("val")
    assert (len(set(train)), len(set(val))) == (len(train), len(val)) == (39810, 4424)
    assert not set(train) & set(val)
    assert {drive for drive, _, _ in train} < set(EIGEN_TRAIN)
    assert sorted(val, key=lambda frame: (frame[0], frame[2], frame[1])) == val


def test_zhou_is_the_published_division(shared: Path) -> None:
    cameras = {"l": "image_02", "r": "image_03"}
    for part in ("train", "val"):
        path = shared / f"data/splits/monodepth2/eigen_zhou/{part}_files.txt"
        lines = map(str.split, path.read_text().splitlines())
        published = {(folder[11:], cameras[side], int(frame)) for folder, frame, side in lines}
        assert set(zhou(part)) == published


def test_nuscenes_scenes() -> None:
    counts = {split: len(scenes) for split, scenes in NUSCENES.items()}
    assert counts == {"train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2}
    assert len({name for part in ("train", "val", "test") for name in NUSCENES[part]}) == 1000
    assert NUSCENES["train"][:4] == ("scene-0001", "scene-0002", "scene-0004", "scene-0005")
    assert NUSCENES["val"][-1] == "scene-1073" and NUSCENES["mini_val"][1] == "scene-0916"
    assert set(NUSCENES["mini_train"]) < set(NUSCENES["train"]) | set(NUSCENES["val"])
