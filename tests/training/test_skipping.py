"""Whole runs on data with a broken frame, under each `config.data.on_error`."""

import dataclasses
import json
import logging
import sys
import types

import numpy as np
import pytest
import tiny_parts

from diffdepth_jax import registry
from diffdepth_jax.errors import DataError
from diffdepth_jax.training import experiment, loop


@dataclasses.dataclass(frozen=True)
class SourceConfig(tiny_parts.SourceConfig):
    name: str = "damaged"
    check_files: bool = True


class Source(tiny_parts.Source):
    def __getitem__(self, index):
        if index == 1:
            raise DataError("frame.png cannot be read: damaged")
        return super().__getitem__(index)


@pytest.fixture
def damaged(tiny, monkeypatch):
    module = types.SimpleNamespace(Config=SourceConfig, build=Source)
    monkeypatch.setitem(sys.modules, "damaged_source", module)
    monkeypatch.setitem(registry.MODULES["source"], "damaged", "damaged_source")
    tiny["data"]["train"]["source"]["name"] = tiny["data"]["evaluation"]["name"] = "damaged"
    return tiny


def test_a_broken_frame_ends_a_run_unless_it_is_skipped(damaged, tmp_path, caplog):
    damaged["num_steps"] = 3
    with pytest.raises(ValueError, match=r"frame.png cannot be read"):
        loop.train_and_evaluate(damaged, tmp_path / "raise")
    damaged["data"]["on_error"] = "skip"
    with caplog.at_level(logging.WARNING):
        result = loop.train_and_evaluate(damaged, tmp_path / "skip")
    assert result["num_images"] == 2 and result["num_unreadable"] == 1
    assert result["unreadable"] == [{"id": "000001", "error": "frame.png cannot be read: damaged"}]
    assert np.isfinite(list(result["metrics"].values())).all()
    record = json.loads((tmp_path / "skip" / "skipped.json").read_text())
    assert record == {
        "num_skipped": 1,
        "skipped": {"000001": "frame.png cannot be read: damaged"},
    }

    # A run ended by a broken frame continues with `skip`, and a resumed run remembers the skips.
    damaged["num_steps"] += 1
    (tmp_path / "skip" / "skipped.json").unlink()
    caplog.clear()
    loop.train(experiment.from_mapping(damaged), tmp_path / "skip")
    assert json.loads((tmp_path / "skip" / "skipped.json").read_text()) == record
    assert not any("is skipped" in each.getMessage() for each in caplog.records)
