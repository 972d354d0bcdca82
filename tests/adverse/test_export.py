import re
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.adverse import config, export, runner
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.sources import adverse
from diffdepth_jax.errors import ConfigError, FileError, MissingFileError


def samples(source):
    """A source's arrays in frame order, whatever the ids."""
    arrays = ("image", "clean_image", "depth")
    return sorted(
        (re.search(r"f\d", sample["id"])[0], *(sample[name].tobytes() for name in arrays))
        for sample in source
    )


@pytest.fixture
def workdir(mapping, tmp_path) -> Path:
    settings = mapping(variants=2)
    settings["backend"] = {"name": "stand_in", "fails": "f1/", "black": "f2/night"}
    runner.run(config.from_mapping(settings), tmp_path / "out", progress=False)
    return tmp_path / "out"


@pytest.mark.parametrize("part", ["driving/kitti", "ToM"])
def test_the_source_reads_the_same_from_workdir_and_layout(workdir, tmp_path, part):
    counts = export.export(workdir, tmp_path / "set", part)
    assert counts == {"night": 6, "fog": 8}
    folder = tmp_path / "set" / part
    clean = None if part == "ToM" else str(folder / "clean")
    read = adverse.source("all", folder, clean_root=clean, depth_root=str(folder / "depth"))
    assert len(read) == 14
    whole = samples(pipeline.evaluation_samples(adverse.Config(root=str(workdir))))
    assert samples(read) == whole and len(whole) == 14
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    assert export.export(workdir, tmp_path / "set", part) == counts
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before


def test_the_published_folders(workdir, tmp_path):
    export.export(workdir, tmp_path / "set", "driving/kitti")
    export.export(workdir, tmp_path / "set", "ToM")
    files = {str(path.relative_to(tmp_path / "set")) for path in (tmp_path / "set").rglob("f0*")}
    assert files == {
        *(f"driving/kitti/challenging/{name}/f0.png" for name in ("night", "night_1", "fog")),
        "driving/kitti/challenging/fog_1/f0.png",
        *("driving/kitti/clean/f0.png", "driving/kitti/depth/f0.npy", "ToM/depth/f0.npy"),
        *(f"ToM/{name}/challenging/f0.png" for name in ("night", "night_1", "fog", "fog_1")),
        *(f"ToM/{name}/easy/f0.png" for name in ("night", "night_1", "fog", "fog_1")),
    }


def test_errors_of_the_export(workdir, tmp_path):
    with pytest.raises(ConfigError, match="driving/NAME"):
        export.export(workdir, tmp_path / "set", "weights")
    with pytest.raises(MissingFileError, match=r"manifest\.jsonl"):
        export.export(tmp_path, tmp_path / "set", "ToM")
    export.export(workdir, tmp_path / "set", "ToM")
    np.save(tmp_path / "set/ToM/depth/f0.npy", np.zeros(3))
    with pytest.raises(FileError, match=r"f0\.npy already exists"):
        export.export(workdir, tmp_path / "set", "ToM")
