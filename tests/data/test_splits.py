from pathlib import Path

import numpy as np

from diffdepth_jax.data.splits import EIGEN_TEST, EIGEN_TRAIN


def test_eigen_counts() -> None:
    assert len(EIGEN_TEST) == 28
    assert sum(map(len, EIGEN_TEST.values())) == 652
    assert len(EIGEN_TRAIN) == 33
    assert not set(EIGEN_TRAIN) & set(EIGEN_TEST)


def test_eigen_is_the_published_division(shared: Path) -> None:
    folder = shared / "data/splits"
    lines = (folder / "marigold/kitti_depth/eigen_test_files_with_gt.txt").read_text().splitlines()
    published = {
        (image.split("/")[1], int(Path(image).stem))
        for image, depth, _ in map(str.split, lines)
        if depth != "None"
    }
    assert published == {(drive, n) for drive, frames in EIGEN_TEST.items() for n in frames}
    train = folder / "monodepth2/eigen_full/train_files.txt"
    drives = np.unique([line.split()[0].split("/")[1] for line in train.read_text().splitlines()])
    assert set(drives) == set(EIGEN_TRAIN)
