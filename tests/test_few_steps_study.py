"""The study of few steps: its trainings are as described, its tables match its rows."""

import importlib
from pathlib import Path

import pytest

from diffdepth_jax.config import to_mapping

STUDIES = Path(__file__).resolve().parents[1] / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("few_steps")


def test_trainings_match_their_names(study):
    planned = study.runs.planned(3, Path("runs"))
    assert len(set(planned)) == len(planned)
    assert {training.method for training in planned} == set(study.runs.METHODS)
    configs = {each.name: to_mapping(each.experiment()) for each in planned}
    published, few = configs["self_20-dense-1"], configs["few-dense-1"]
    assert published["model"]["diffusion"]["num_inference_steps"] == 20
    assert published["model"]["diffusion"]["timestep_spacing"] == "leading"
    assert tuple(few["objective"]["step_counts"]) == study.runs.COUNTS
    assert few["seed"] == published["seed"] == 1
    for name in ("data", "optimizer", "batch_size"):
        assert few[name] == published[name]
    distilled = configs["distilled-dense-0"]
    assert distilled["teacher"]["checkpoint"] == distilled["init"]["network"]
    assert distilled["teacher"]["checkpoint"] == "runs/trailing_20-dense-0"
    # Equal cost, by the cost per update that the study states.
    costs = study.runs.UPDATE_MS
    spent = few["num_steps"] * costs["few"], published["num_steps"] * costs["self_20"]
    assert spent[0] == pytest.approx(spent[1], rel=0.01)


def _row(method, steps, abs_rel, seed=0, recalibrated=False):
    row = {"method": method, "seed": seed, "steps": steps, "recalibrated": recalibrated}
    return row | {"abs_rel": abs_rel, "rmse": 8.0, "cpu_seconds": 100.0, "predict_ms": 5.0}


def test_tables_compare_with_20_steps_at_the_same_seed(study):
    rows = [
        _row("self_20", 20, 0.3),
        _row("self_20", 20, 0.4, seed=1),
        _row("self_20", 1, 0.6, recalibrated=True),
        _row("few", 1, 0.33),
        _row("few", 1, 0.38, seed=1),
        _row("few", 4, 0.31, seed=2),  # no model with 20 steps yet
    ]
    rows = [row | {"abs_rel_to_20": study.ratio_to_20(row, rows)} for row in rows]
    table = study.tables(rows)
    assert "| trained at 20, recalibrated | 1 | 0.600 | +100.0% |" in table
    assert "| 1 | 0.355 ± 0.035 | +2.5% ± 10.6 |" in table
    assert "| 4 | 0.310 |  |" in table
