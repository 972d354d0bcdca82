from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data import io, listing
from diffdepth_jax.errors import DataError, MissingFileError


def frames(folder: Path, count: int = 3) -> list[listing.Frame]:
    made = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(path)
        made.append(listing.Frame(id=str(number), image=str(path)))
    return made


def read(frame: listing.Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return listing.unmeasured(size), listing.UNKNOWN


def open_source(made: list[listing.Frame], **options: object) -> listing.FrameSource:
    return listing.FrameSource(made, read, where="split 'a' of here", remedy="do this", **options)


def test_a_source_of_frames(tmp_path: Path) -> None:
    source = open_source(frames(tmp_path))
    assert len(source) == 3
    assert [sample["id"] for sample in source] == ["0", "1", "2"]
    assert (source[2]["image"] == 2).all() and source[2]["depth"].shape == (4, 6)
    assert np.isnan(source[0]["intrinsics"]).all() and source[0]["condition"] == "day-clear"


def test_what_is_refused_on_opening(tmp_path: Path) -> None:
    made = frames(tmp_path)
    with pytest.raises(DataError, match="no frames in split 'a' of here: do this"):
        open_source([])
    with pytest.raises(DataError, match="frame 1 occurs twice in split 'a' of here"):
        open_source([*made, made[1]])
    Path(made[1].image).unlink()
    with pytest.raises(MissingFileError, match=r"1 of 3 files of .*1\.png: do this"):
        open_source(made)
    late = open_source(made, check_files=False)
    assert late[2]["id"] == "2"
    with pytest.raises(MissingFileError, match=r"1\.png"):
        late[1]


def test_depth_of_another_size_is_refused(tmp_path: Path) -> None:
    source = listing.FrameSource(
        frames(tmp_path),
        lambda frame, size: (np.zeros((4, 5), np.float32), listing.UNKNOWN),
        where="here",
        remedy="do this",
    )
    with pytest.raises(DataError, match=r"0.png.*4x6.*4x5"):
        source[0]


def test_file_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.txt", "._b.png"):
        (tmp_path / name).touch()
    assert listing.file_names(tmp_path, ".png", ".jpg") == ["a.jpg", "b.png"]


def test_two_stars_descend_into_linked_folders(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for name in ("root/a/1.png", "root/a/deep/2.png", "elsewhere/3.png", "elsewhere/deep/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (root / "b").symlink_to(elsewhere)

    def found(pattern: str) -> list[str]:
        return sorted(path.relative_to(root).as_posix() for path in listing.below(root, pattern))

    everything = ["a/1.png", "a/deep/2.png", "b/3.png", "b/deep/4.png"]
    assert found("**/*.png") == found("**/**/*.png") == everything
    assert found("b/**/*.png") == ["b/3.png", "b/deep/4.png"]
    assert found("*/**/deep/*.png") == ["a/deep/2.png", "b/deep/4.png"]
    assert found("*/*.png") == ["a/1.png", "b/3.png"]
    assert found("c/**/*.png") == found("a/1.png/**/*.png") == []
    # Links whose files are listed anyway, and links that form cycles.
    for place, target in [
        ("root/latest", root / "a"),
        ("root/a/self", root / "a"),
        ("root/a/up", tmp_path),
        ("root/loop", "loop"),
        ("root/gone", "nowhere"),
        ("elsewhere/back", root),
        ("elsewhere/into", root / "a/deep"),
        ("elsewhere/latest", elsewhere / "deep"),
    ]:
        (tmp_path / place).symlink_to(target)
    assert found("**/*.png") == everything


def test_splits_and_lists(tmp_path: Path) -> None:
    listing.require_split("val", ("train", "val"))
    listing.require_split("mine.txt", ("train", "val"), lists=True)
    for split, lists in (("test", True), ("mine.txt", False)):
        with pytest.raises(ValueError, match=f"split is '{split}'.*train, val"):
            listing.require_split(split, ("train", "val"), lists=lists)
    (tmp_path / "list.txt").write_text("\n one two \n\nthree\n")
    lines = listing.read_lines(tmp_path / "list.txt", "train")
    assert lines == [(2, "one two"), (4, "three")]
    with pytest.raises(MissingFileError, match=r"no\.txt .*split must name a list"):
        listing.read_lines(tmp_path / "no.txt", "train")


def test_calibration_and_json(tmp_path: Path) -> None:
    path = tmp_path / "calib.txt"
    path.write_text("date: today\nP2: 1 2 3 4e0 5 6\nP3: 1 2 x\nP4: 1 nan 3 4 5 6\n")
    got = io.read_calibration(path, "P2", (2, 3))
    np.testing.assert_array_equal(got, [[1, 2, 3], [4, 5, 6]])
    for key, message in (("P5", "has no P5"), ("P3", "P3: .*'x'"), ("P4", "P4: 6 finite")):
        with pytest.raises(DataError, match=rf"calib\.txt.*{message}"):
            io.read_calibration(path, key, (2, 3))
    (tmp_path / "a.json").write_text('{"fx": 1')
    with pytest.raises(DataError, match=r"a\.json.*download it again"):
        io.read_json(tmp_path / "a.json")
    for absent in (lambda path: io.read_calibration(path, "P2", (3, 4)), io.read_json):
        with pytest.raises(MissingFileError, match="gone"):
            absent(tmp_path / "gone")
