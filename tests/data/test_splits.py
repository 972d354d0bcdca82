import hashlib
from collections.abc import Iterable
from typing import Literal

import pytest

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


def digest(rows: Iterable[tuple[object, ...]]) -> str:
    text = "\n".join(sorted(" ".join(map(str, row)) for row in rows))
    return hashlib.sha256(text.encode()).hexdigest()


# Digests of the published lists, read as sets of such rows: eigen_test_files_with_gt.txt of
# prs-eth/Marigold, eigen_full and eigen_zhou of nianticlabs/monodepth2 (splits).
PUBLISHED = {
    "eigen_test": "1c28efbc70fa52590020a41eb9a118559ad27e4ba976bde51098cce75cadf507",
    "eigen_train": "71dc85f35c174bc274e95cc611d6b2f806be47b1ba872cb85c9ccbe374437ad1",
    "train": "4abf1eccb60a2cc0b5f6802a1150c557b79ee3e72f555a6ee5211918f5f4915a",
    "val": "cc952bf7c0a50b340107ffe015e48bdea4b9eb02059767959df0859c543f8ebe",
}


def test_eigen_is_the_published_split() -> None:
    ours = {(*pair, True) for pair in pairs(EIGEN_TEST)}
    ours |= {(*pair, False) for pair in pairs(EIGEN_TEST_WITHOUT_DEPTH)}
    assert digest(ours) == PUBLISHED["eigen_test"]
    assert digest((drive,) for drive in EIGEN_TRAIN) == PUBLISHED["eigen_train"]


def test_zhou_counts() -> None:
    train, val = zhou("train"), zhou("val")
    assert (len(set(train)), len(set(val))) == (len(train), len(val)) == (39810, 4424)
    assert not set(train) & set(val)
    assert {drive for drive, _, _ in train} < set(EIGEN_TRAIN)
    assert sorted(val, key=lambda frame: (frame[0], frame[2], frame[1])) == val


@pytest.mark.parametrize("part", ["train", "val"])
def test_zhou_is_the_published_split(part: Literal["train", "val"]) -> None:
    assert digest(zhou(part)) == PUBLISHED[part]


def test_nuscenes_scenes() -> None:
    counts = {split: len(scenes) for split, scenes in NUSCENES.items()}
    assert counts == {"train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2}
    assert len({name for part in ("train", "val", "test") for name in NUSCENES[part]}) == 1000
    assert NUSCENES["train"][:4] == ("scene-0001", "scene-0002", "scene-0004", "scene-0005")
    assert NUSCENES["val"][-1] == "scene-1073" and NUSCENES["mini_val"][1] == "scene-0916"
    assert set(NUSCENES["mini_train"]) < set(NUSCENES["train"]) | set(NUSCENES["val"])
