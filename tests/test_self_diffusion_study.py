"""The study of self-diffusion: its trainings are as described, its tables match its rows."""

import csv
import importlib
from pathlib import Path

import pytest

from diffdepth_jax.config import differences, to_mapping

STUDIES = Path(__file__).resolve().parents[1] / "studies"


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("self_diffusion_runs")


@pytest.fixture
def report(runs):
    return importlib.import_module("self_diffusion_report")


def test_trainings_differ_only_in_what_they_compare(runs):
    planned = runs.planned(3)
    assert len(set(planned)) == len(planned)
    assert {training.method for training in planned} == set(runs.METHODS)

    def fields(method, depth="dense", seed=0):
        return to_mapping(runs.Training(method, depth, seed).experiment())

    changed = differences(fields("self"), fields("self", "groundtruth", 2))
    assert sorted(line.split(":")[0] for line in changed) == [
        "config.data.train.source.depth",
        "config.seed",
    ]
    for method in runs.METHODS:
        own = fields(method)
        assert own["data"]["evaluation"]["depth"] == "dense"
        assert own["checkpoint"]["every_steps"] == own["num_steps"]
    assert fields("pure")["objective"]["decoded"] == "ground_truth"
    assert fields("self_20")["model"]["diffusion"]["num_inference_steps"] == 20


def _row(**fields):
    asked = {"asked_steps": None, "steps": None, "recalibrated": False, "samples": 1}
    scores = {"abs_rel": 0.3, "rmse": 8.0, "silog": 30.0, "delta1": 0.5, "boundary_f1": 0.1}
    row = {"depth": "dense", "seed": 0, "flip_tta": False, "cpu_seconds": 60.0, "predict_ms": 5.0}
    return row | asked | scores | fields


def test_tables_show_the_rows_and_leave_missing_cells_empty(report, tmp_path):
    rows = [
        _row(method="regression"),
        _row(method="regression", seed=1, abs_rel=0.4),
        _row(method="self_20", steps=20, abs_rel=0.25),
        _row(method="self_20", steps=5, asked_steps=5, abs_rel=0.77),
        _row(method="self_20", steps=5, asked_steps=5, recalibrated=True, abs_rel=0.26),
        _row(method="self", steps=5, samples=8, abs_rel=0.21, spread=0.5, rank_correlation=0.111),
        _row(method="self", steps=5, depth="groundtruth", abs_rel=0.99),
    ]
    baseline = {"abs_rel": 0.446}
    assert "| regression | 0.350 ± 0.071 |  |" in report.ground_truth_table(rows, baseline)
    assert "|  | 0.990 |" in report.ground_truth_table(rows, baseline)
    steps = report.steps_table(rows).splitlines()
    assert steps[2].startswith("| 20 | 0.250 / 8.00 |  |")
    assert steps[5].startswith("| 5 | 0.770 / 8.00 | 0.260 / 8.00 |")
    assert "mean of several | 0.210" in report.edges_table(rows)
    assert "0.111" in report.spread_table(rows)
    assert "0.446" in report.tables(rows, baseline)

    report.write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["abs_rel"] for row in found] == [f"{row['abs_rel']:.4f}" for row in rows]
