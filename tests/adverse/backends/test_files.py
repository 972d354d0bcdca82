import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import registry
from diffdepth_jax.adverse import config as config_lib
from diffdepth_jax.adverse import manifest, runner
from diffdepth_jax.adverse.backends import files
from diffdepth_jax.data.sources import adverse
from diffdepth_jax.errors import ConfigError, MissingFileError

SIZES = [(24, 40), (24, 40), (16, 40), (24, 40), (24, 40)]


@pytest.fixture
def pictures(frames: Path) -> Path:
    """Two conditions next to the clean frames, each in its own colour."""
    for number, size in enumerate(SIZES):
        for place, condition in enumerate(("night", "fog")):
            write(frames / condition / f"image/f{number}.png", 10 * number + place + 20, size)
    return frames


def write(path: Path, value: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def run(settings: dict, workdir: Path) -> runner.Result:
    return runner.run(config_lib.from_mapping(settings), workdir, progress=False)


def backend(root: Path, **options: object) -> dict:
    return {"name": "files", "root": str(root)} | options


def shade(workdir: Path, record: manifest.Record) -> int:
    image = np.asarray(Image.open(workdir / record.image))
    assert image.min() == image.max()
    return int(image[0, 0, 0])


def test_pictures_become_pairs(
    mapping: Callable,
    pictures: Path,
    checkpoint: Callable,
    tmp_path: Path,
) -> None:
    teacher = {"checkpoint": checkpoint("relative.pt"), "batch_size": 2}
    settings = mapping(
        backend=backend(pictures, maker="rendered"),
        conditions=("fog", "night"),
        labels="teacher",
        teacher=teacher,
    )
    result = run(settings, tmp_path / "out")
    assert [(r.id, r.condition, r.status) for r in result.records] == [
        (f"f{number}", condition, "ok") for number in range(5) for condition in ("fog", "night")
    ]
    for record in result.records:
        number = int(record.id[1:])
        assert shade(tmp_path / "out", record) == 10 * number + 20 + (record.condition == "fog")
        assert record.backend == f"rendered-{record.condition}" and record.prompt == ""
        assert record.details == {"file": f"{record.condition}/image/{record.id}.png"}
        assert record.structure is not None and record.label_is == "relative_disparity"
    assert (tmp_path / "out/gallery.html").exists()
    assert run(settings, tmp_path / "out").records == result.records
    pairs = adverse.source("all", tmp_path / "out", relative="inverse")
    assert len(pairs) == 10 and pairs[3]["id"] == "f1_night_0" and pairs[3]["image"].max() == 30
    clean = np.asarray(Image.open(pictures / "image/f1.png"))
    np.testing.assert_array_equal(pairs[3]["clean_image"], clean)


def test_patterns(mapping: Callable, pictures: Path, tmp_path: Path) -> None:
    """By id, name and variant, in another folder, with another suffix and size."""
    other = tmp_path / "other"
    for number in range(5):
        for variant in range(2):
            write(other / f"night_f{number}_{variant}.webp", 100 + number + 50 * variant, (48, 80))
            write(other / f"mist/f{number}-{variant}.png", 200 + number + 20 * variant, (24, 40))
    patterns = {"fog": "mist/{name}-{variant}.png"}
    settings = mapping(
        backend=backend(other, pattern="{condition}_{id}_{variant}.*", patterns=patterns),
        variants=2,
    )
    records = run(settings, tmp_path / "out").records
    assert len(records) == 20
    for record in records:
        number, variant = int(record.id[1:]), record.variant
        fog = record.condition == "fog"
        expected = 200 + number + 20 * variant if fog else 100 + number + 50 * variant
        assert abs(shade(tmp_path / "out", record) - expected) <= 2  # WebP is lossy
        # Images of another size are resized to the clean image's, and the manifest says so.
        if not fog or number == 2:
            assert record.details["size"] == ([24, 40] if fog else [48, 80])
        else:
            assert "size" not in record.details
        with Image.open(tmp_path / "out" / record.image) as image:
            assert image.size == SIZES[number][::-1]


def test_a_pattern_may_be_an_absolute_path(
    mapping: Callable, pictures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (pictures / "night").rename(other)
    patterns = {"night": f"{other}/image/{{name}}.png"}
    records = run(mapping(backend=backend(pictures, patterns=patterns)), tmp_path / "out").records
    assert {record.status for record in records} == {"ok"}
    assert [record.details["file"] for record in records[:2]] == [
        str(other / "image/f0.png"),
        "fog/image/f0.png",
    ]


def test_suffixes_may_be_in_upper_case(mapping: Callable, pictures: Path, tmp_path: Path) -> None:
    for path in (pictures / "night/image").iterdir():
        path.rename(path.with_suffix(".PNG"))
    records = run(mapping(backend=backend(pictures)), tmp_path / "out").records
    assert {record.status for record in records} == {"ok"}
    assert records[0].details["file"] == "night/image/f0.PNG"


def test_missing_and_broken_files_fail_and_are_retried(
    mapping: Callable, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "fog/image/f1.png").unlink()
    (pictures / "night/image/f3.png").write_bytes(b"no image")
    settings = mapping(backend=backend(pictures))
    failed = run(settings, tmp_path / "out").failed
    assert [record.id for record in failed] == ["f1", "f3"]
    assert "fog/image/f1.* does not exist" in failed[0].reason
    assert "f3.png cannot be read" in failed[1].reason
    write(pictures / "fog/image/f1.jpg", 77, (24, 40))
    assert [record.id for record in run(settings, tmp_path / "out").failed] == ["f3"]
    assert adverse.source("all", tmp_path / "out").num_failed == 1


def test_missing_pictures_are_reported_first(
    mapping: Callable, pictures: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], message: str, **changes: object) -> None:
        with pytest.raises(error, match=message):
            run(mapping(**changes), tmp_path / f"out{len(list(tmp_path.iterdir()))}")

    refused(
        MissingFileError,
        r"no images of the condition 'snow'.*frames/snow/image/f0\.\*.*backend\.pattern",
        backend=backend(pictures),
        conditions=("night", "snow"),
    )
    refused(MissingFileError, "nowhere does not exist", backend=backend(tmp_path / "nowhere"))
    refused(ConfigError, r"not below .*set backend\.root", backend=backend(pictures / "night"))
    refused(ConfigError, r"one file for all variants", backend=backend(pictures), variants=2)
    with pytest.raises(ConfigError, match="runs in this process"):
        settings = config_lib.from_mapping(mapping(backend=backend(pictures)))
        runner.run(settings, tmp_path / "python", python="python3", progress=False)


def test_a_workdir_fixes_its_patterns_but_not_its_root(
    mapping: Callable, pictures: Path, tmp_path: Path
) -> None:
    run(mapping(backend=backend(pictures)), tmp_path / "out")
    moved = pictures.rename(tmp_path / "moved")
    source = {"name": "folder", "root": str(moved)}
    again = run(mapping(backend=backend(moved), source=source), tmp_path / "out")
    assert not again.failed
    other = backend(moved, pattern="{condition}/image/{id}.*")
    with pytest.raises(ConfigError, match="started with a different config"):
        run(mapping(backend=other, source=source), tmp_path / "out")


def test_a_source_without_files_has_ids_only(tmp_path: Path) -> None:
    def item(number: int) -> files.Item:
        return files.Item(
            key=f"a{number}/night/0",
            condition="night",
            seed=0,
            prompt="",
            negative_prompt="",
            image=tmp_path / "clean.png",
            control=None,
            depth=None,
            intrinsics=None,
            output=tmp_path / f"{number}.png",
            size=(4, 6),
        )

    write(tmp_path / "night/a0.png", 50, (4, 6))
    with pytest.raises(ConfigError, match=r"does not list image files.*use {id}"):
        files.Session(files.Config(), tmp_path).check([item(0)])
    session = files.Session(files.Config(pattern="{condition}/{id}.png"), tmp_path)
    session.check([item(0), item(1)])
    first, second = session.generate([[item(0), item(1)]])
    assert first.error is None and "a1.png does not exist" in second.error
    assert np.asarray(Image.open(tmp_path / "0.png")).max() == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "{condition}/x.png"}, "one file for all frames"),
        ({"pattern": "{path}.*"}, "one file for all conditions"),
        ({"pattern": "{condition}/{frame}"}, r"names in braces must be among {condition}, {path}"),
        ({"pattern": "{condition}/{path"}, "expected '}'"),
        ({"patterns": {"fog": "x.png"}}, r"patterns\['fog'\] is 'x.png'"),
        ({"maker": ""}, "maker is empty"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_values_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files.Config(**changes)
    assert registry.module("backend", "files") is files
    assert json.dumps(files.Session(files.Config(), Path()).identity())
