"""Names of checkpoints, and how many stay loaded."""

from pathlib import Path

import pytest

from diffdepth_jax.app import checkpoints
from diffdepth_jax.app.checkpoints import Checkpoints
from diffdepth_jax.errors import ConfigError, FileError, MissingFileError
from diffdepth_jax.weights import orbax


def test_names_tell_checkpoints_apart():
    paths = [Path("/a/runs/demo"), Path("/b/runs/demo"), Path("/a/kitti"), Path("/a/kitti")]
    assert checkpoints.names(paths) == {
        "a/runs/demo": paths[0],
        "b/runs/demo": paths[1],
        "kitti": paths[2],
    }


def test_a_folder_is_searched_for_runs_and_weights(tmp_path, monkeypatch):
    for name in ("run", "empty"):
        (tmp_path / name).mkdir()
    for name in ("b.pt", "a.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(orbax, "is_run", lambda path: path.name == "run")
    found = checkpoints.find(tmp_path)
    assert [path.name for path in found] == ["a.safetensors", "b.pt", "run"]
    with pytest.raises(MissingFileError, match="empty holds no run with a complete checkpoint"):
        checkpoints.find(tmp_path / "empty")
    with pytest.raises(FileError, match="nowhere cannot be read"):
        checkpoints.find(tmp_path / "nowhere")


def test_the_most_recently_used_models_stay_loaded(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.touch()
    loads = []
    known = Checkpoints(paths, lambda path: loads.append(path.name) or path.name.upper(), keep=2)
    assert known.names == ["a", "b", "c"] and known.loaded == []
    for name in "abac":
        assert known.model(name) == name.upper()
    assert known.loaded == ["a", "c"] and loads == ["a", "b", "c"]
    known.model("b")
    assert known.loaded == ["c", "b"] and loads == ["a", "b", "c", "b"]
    with pytest.raises(ConfigError, match="no checkpoint 'd'; known are a, b, c"):
        known.model("d")


def test_mistakes_are_found_at_once(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint is given"):
        Checkpoints([], lambda path: path)
    with pytest.raises(MissingFileError, match="nowhere cannot be read"):
        Checkpoints([tmp_path / "nowhere"], lambda path: path)
    with pytest.raises(ConfigError, match="0 models to keep loaded"):
        Checkpoints([tmp_path], lambda path: path, keep=0)
