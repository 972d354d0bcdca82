"""What is written is read back bit for bit, without TensorFlow; nothing half-written is read."""

import dataclasses
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import Sample, Source, kitti, tfds
from diffdepth_jax.errors import DataError, FileError, MissingFileError

TOOL = Path(__file__).resolve().parents[3] / "tools" / "prepare_data.py"
RECORD = {"frames": 5}


def sample(number: int, **fields: object) -> Sample:
    """A frame with every field that a source may have; sizes differ between frames."""
    rng = np.random.default_rng(number)
    height, width = 20 + number, 31
    depth = rng.uniform(0, 80, (height, width)) * rng.integers(0, 2, (height, width))
    categories = rng.integers(0, 4, (height, width), dtype=np.uint8)
    intrinsics = np.full((3, 3), np.nan) if number == 1 else rng.normal(size=(3, 3))
    return {
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "depth": depth.astype(np.float32),
        "intrinsics": intrinsics.astype(np.float32),
        "id": f"frame_{number}",
        "condition": "night",
        "disparity": rng.uniform(0, 80, (height, width)).astype(np.float32),
        "baseline": 0.1 + number,
        "categories": categories,
        "tom_mask": categories >= 2,
        "clean_image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        **fields,
    }


class Frames:
    """A source that fails at one frame."""

    def __init__(self, samples: list[Sample], broken: int | None = None):
        self.samples = samples
        self.broken = broken
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(int(index))
        if index == self.broken:
            raise ValueError("a broken frame")
        return self.samples[index]


def assert_equal(source: Source, others: Source | list[Sample]) -> None:
    assert len(source) == len(others)
    for index in range(len(others)):
        frame, other = source[index], others[index]
        assert frame.keys() == other.keys()
        for name, value in other.items():
            assert type(frame[name]) is type(value)
            if isinstance(value, np.ndarray):
                assert frame[name].dtype == value.dtype
                np.testing.assert_array_equal(frame[name], value)
            else:
                assert frame[name] == value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tfds.directory(tmp_path, "made", "lists/part-a.txt")


def test_every_field_comes_back(
    folder: Path, tmp_path: Path, check_contract: Callable[[Source], None]
) -> None:
    samples = [sample(number) for number in range(5)]
    tfds.write(Frames(samples), folder, "part_a", RECORD, frames_per_file=2)
    assert len(list(folder.glob("*array_record*"))) == 3
    source = tfds.source("part_a", tmp_path, dataset="made")
    assert_equal(source, samples)
    check_contract(source)
    with pytest.raises(IndexError):
        source[5]


def test_an_interrupted_preparation_is_resumed(folder: Path, tmp_path: Path) -> None:
    samples = [sample(number) for number in range(5)]
    with pytest.raises(ValueError, match="a broken frame"):
        tfds.write(Frames(samples, broken=3), folder, "part_a", RECORD, frames_per_file=2)
    with pytest.raises(MissingFileError, match=r"made_part_a/1.0.0 .*write it with"):
        tfds.source("part_a", tmp_path, dataset="made")
    with pytest.raises(DataError, match=r".*5.*, not from .*6.*: choose another"):
        tfds.write(Frames(samples), folder, "part_a", {"frames": 6}, frames_per_file=2)
    again = Frames(samples)
    tfds.write(again, folder, "part_a", RECORD, frames_per_file=2)
    assert sorted(again.read) == [0, 2, 3, 4]  # 0 for its fields; 0 and 1 were written
    assert_equal(tfds.source("part_a", tmp_path, dataset="made"), samples)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_frames_of_two_kinds(folder: Path) -> None:
    other = sample(1)
    del other["disparity"]
    with pytest.raises(DataError, match=r"frame frame_1.*one kind"):
        tfds.write(Frames([sample(0), other]), folder, "part_a", RECORD)


def test_a_full_disk_names_folder_and_cause(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets

    def full(writer: object) -> None:
        raise RuntimeError("write() failed: No space left on device")  # ArrayRecord's words

    monkeypatch.setattr(tensorflow_datasets.core.SequentialWriter, "close_all", full)
    with pytest.raises(FileError, match=r"incomplete_1\.0\.0.*No space left"):
        tfds.write(Frames([sample(0)]), folder, "part_a", RECORD)
    assert not folder.exists()


def test_damaged(folder: Path, tmp_path: Path) -> None:
    tfds.write(Frames([sample(0)]), folder, "part_a", RECORD)
    (path,) = folder.glob("*array_record*")
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(MissingFileError, match=f"1 of 1 files of {folder} are missing.* again"):
        tfds.source("part_a", tmp_path, dataset="made")
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    source = tfds.source("part_a", tmp_path, dataset="made")
    with pytest.raises(DataError, match=f"{folder}, frame 0.* prepare it again"):
        source[0]
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=f"{folder}.* prepare it again"):
        tfds.source("part_a", tmp_path, dataset="made")


def test_the_tool(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    """As a process, without TensorFlow; it does not overwrite a different data set."""
    drive = "2011_09_26_drive_0002_sync"
    root = write_kitti([(drive, "image_02", number) for number in range(3)])
    program = "import runpy, sys; del sys.argv[0]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__'); "
    program += "assert 'tensorflow' not in sys.modules"
    flags = [f"--root={root}", "--split=train", "--cameras=('image_02',)", "--threads=1"]
    done = subprocess.run(
        [sys.executable, "-c", program, TOOL, "kitti", *flags, f"--output={tmp_path / 'prepared'}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "prepared" / "diffdepth" / "kitti_train" / "1.0.0"
    assert done.stdout.strip() == str(folder)
    record = json.loads((folder / "source.json").read_text())
    assert record["frames"] == 3 and record["source"]["root"] == str(root)
    copy = tfds.source("train", tmp_path / "prepared", dataset="kitti")
    config = kitti.Config(root=str(root), cameras=("image_02",))
    assert_equal(copy, kitti.build(config))
    prepare = runpy.run_path(str(TOOL))["prepare"]
    assert prepare(config, tmp_path / "prepared") == folder  # done already
    with pytest.raises(DataError, match=r".*.*--output"):
        prepare(dataclasses.replace(config, check_files=False), tmp_path / "prepared")
