"""What the robustness study does with its scores; `make robust-demo` does the runs."""

import csv
import dataclasses
import importlib
import io
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).resolve().parents[1] / "studies"


@pytest.fixture(scope="module")
def study_modules():
    sys.path.insert(0, str(STUDIES))
    try:
        yield importlib.import_module("robustness"), importlib.import_module("robustness_report")
    finally:
        sys.path.remove(str(STUDIES))


def record(images, seed, condition, metric, before, after):
    return {
        "scenes": "street",
        "images": images,
        "seed": seed,
        "condition": condition,
        "pixels": "all",
        "metric": metric,
        "before": before,
        "after": after,
        "num_images": 2,
    }


@pytest.fixture
def records():
    return [
        record(images, seed, condition, metric, before, after * (1 + seed))
        for images, after in (("rendered", 0.2), ("clear", 0.4))
        for seed in (0, 1)
        for condition, before in (("clear", 0.3), ("night", 0.4), ("fog", 0.8))
        for metric in ("abs_rel", "abs_rel_median", "abs_rel_aligned")
    ]


def test_gain_is_of_the_mean_over_conditions_for_each_seed(study_modules, records):
    _, report = study_modules
    found = report.gain(records, "rendered", ("night", "fog"), "abs_rel_aligned")
    assert found == pytest.approx([1 - 0.2 / 0.6, 1 - 0.4 / 0.6])
    assert report.gain(records, "clear", ("night",), "abs_rel") == pytest.approx([0.0, -1.0])


def test_repaired_scale_is_the_part_that_alignment_also_gives(study_modules):
    _, report = study_modules
    records = [
        record("rendered", 0, "fog", "abs_rel", 0.9, 0.4),
        record("rendered", 0, "fog", "abs_rel_aligned", 0.5, 0.3),
        record("rendered", 0, "clear", "abs_rel", 0.9, 0.1),
        record("clear", 0, "fog", "abs_rel", 0.9, 0.1),
    ]
    assert report.repaired_scale(records, "rendered", ("fog",)) == pytest.approx(0.6)


def test_summary_has_a_row_for_each_student_condition_and_seed(study_modules, records):
    _, report = study_modules
    rows = report.summary(records)["rows"]
    assert len(rows) == 2 * 2 * 3
    assert rows[0] == {
        "images": "rendered",
        "condition": "clear",
        "seed": 0,
        "abs_rel_before": 0.3,
        "abs_rel_after": 0.2,
        "aligned_before": 0.3,
        "aligned_after": 0.2,
    }
    assert {row["aligned_after"] for row in rows if row["seed"] == 1} == {0.4, 0.8}


def test_table_shows_means_over_seeds_and_changes(study_modules, records):
    robustness, report = study_modules
    study = robustness.Study(
        dataclasses.replace(robustness.SCENES["streets"], conditions=("night", "fog")),
        Path("frames"),
        Path("out"),
        (0, 1),
        ("rendered", "clear"),
        1,
        1,
    )
    first, second = report.table(study, records).split("\n\n")[1::2]
    assert first == second
    assert first.splitlines() == [
        "| condition | teacher | rendered | clear |",
        "| --- | ---: | ---: | ---: |",
        "| clear | 0.300 | 0.300 (+0.0 ± 47.1%) | 0.600 (+100.0 ± 94.3%) |",
        "| night | 0.400 | 0.300 (-25.0 ± 35.4%) | 0.600 (+50.0 ± 70.7%) |",
        "| fog | 0.800 | 0.300 (-62.5 ± 17.7%) | 0.600 (-25.0 ± 35.4%) |",
        "| mean of 2 | 0.600 | 0.300 (-50.0 ± 23.6%) | 0.600 (+0.0 ± 47.1%) |",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images=rendred"], "streets have no 'rendred'"),
        (["--scenes=tabletops", "--images=physical"], "tabletops have no 'physical'"),
        (["--seeds=0,x"], "must be integers"),
        (["--step=3"], "'--step=3' is not an option"),
    ],
)
def test_wrong_flags_are_named(study_modules, monkeypatch, capsys, tmp_path, words, message):
    robustness, _ = study_modules
    monkeypatch.setattr(sys, "argv", ["robustness.py", f"--workdir={tmp_path / 'out'}", *words])
    with pytest.raises(SystemExit):
        robustness._parse()
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_runs_are_complete_commands(study_modules, monkeypatch, tmp_path):
    robustness, _ = study_modules
    monkeypatch.setattr(sys, "argv", ["robustness.py", f"--workdir={tmp_path}"])
    study, commands = robustness._parse(), []
    monkeypatch.setattr(robustness, "_run", lambda *command: commands.append(command))
    robustness.train_teacher(study, 0)
    for images in study.images:
        robustness.train_student(study, 0, images)
    pairs = [c for c in commands if c[0] == "generate_adverse.py"]
    runs = {c[2].rpartition("/")[2]: c for c in commands if c[0] == "train.py"}
    assert list(runs) == ["teacher", *robustness.IMAGES]
    for images, command in runs.items():
        if images != "teacher":
            assert f"--config.init.network={tmp_path / 'teacher'}" in command
        controls = "--config.data.train.clean_share=1.0" in command
        assert controls == (images in ("clear", "colour"))
    assert "--config.data.train.augmentation.jitter=0.4" in runs["colour"]
    # The commands make nothing here, so each student asks for the pairs again.
    assert {c[2] for c in pairs} == {
        f"--workdir={tmp_path / name}" for name in ("rendered_pairs", "physical_pairs")
    }
    streets = (tmp_path / "rendered_layouts.txt").read_text().split()
    assert (
        len(streets) == 120 and len((tmp_path / "physical_layouts.txt").read_text().split()) == 240
    )


def test_committed_rows_are_complete():
    """`results/robustness.csv` lists each condition of each student and seed once."""
    path = STUDIES.parent / "results" / "robustness.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    names = ("scenes", "images", "seed", "condition", "pixels", "metric", "steps", "command")
    keys = [tuple(row[name] for name in names) for row in rows]
    assert len(set(keys)) == len(keys)
    for row in rows:
        assert float(row["before"]) > 0 and float(row["after"]) > 0
        assert row["commit"] and row["device"] and float(row["seconds"]) > 0
