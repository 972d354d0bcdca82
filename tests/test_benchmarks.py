"""The harness of the benchmarks, and the peer that the project is timed against."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

# Ways to compute the same thing: the peer, equivalent ones, and one that fails.
SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, {benchmarks!r})
import harness
import numpy as np

harness.PYTHON = dict.fromkeys(("jax", "torch"), Path(sys.executable))


def way(difference):
    def prepare(case, folder):
        assert difference is not None
        start = float((folder / "start").read_text())
        return lambda: {{"result": np.array([start, 1.0 + difference])}}

    return prepare


question = harness.Question(
    "toy",
    ("small", "large"),
    {{
        "peer": harness.Way("torch", way(0.0)),
        "ours": harness.Way("jax", way({difference})),
        "slow": harness.Way("jax", way(0.0), cases=("large",)),
        "broken": harness.Way("torch", way(None), optional=True),
    }},
    lambda case, folder: (folder / "start").write_text("2.0"),
    fresh={fresh},
)
harness.main(question, "Toy.")
"""


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness

    return harness


def run_script(folder: Path, *options: str, **values) -> subprocess.CompletedProcess:
    script = folder / "toy.py"
    script.write_text(SCRIPT.format(benchmarks=str(BENCHMARKS), **values))
    command = [sys.executable, str(script), f"--results={folder / 'rows.csv'}", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("fresh", [False, True])
def test_ways_are_compared_and_timed_in_turn(tmp_path, fresh):
    done = run_script(tmp_path, "--rounds=2", "--cases=small", difference=1e-5, fresh=fresh)
    assert done.returncode == 0, done.stderr
    assert "broken does not work here" in done.stdout
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == ["peer", "ours"]
    assert {(row["question"], row["case"], row["rounds"]) for row in rows} == {
        ("toy", "small", "2")
    }
    assert float(rows[0]["ratio"]) == 1.0
    # Relative to the largest of the peer's values, 2.
    assert [row["error"] for row in rows] == ["0.0e+00", "5.0e-06"]
    assert all(float(row["seconds"]) > 0 and float(row["peak_mb"]) > 1 for row in rows)


def test_ways_can_be_chosen(tmp_path):
    options = {"difference": 0.0, "fresh": False}
    done = run_script(tmp_path, "--rounds=1", "--cases=small", "--ways=slow,peer", **options)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [row["way"] for row in csv.DictReader(file)] == ["peer", "slow"]
    done = run_script(tmp_path, "--ways=theirs", **options)
    assert "--ways has ['theirs']; there are ['peer', 'ours', 'slow', 'broken']" in done.stderr


def test_results_that_differ_are_not_timed(tmp_path):
    done = run_script(tmp_path, "--cases=small", difference=0.1, fresh=False)
    assert done.returncode != 0
    assert "toy, small: the result of ours differs by 5.0e-02" in done.stderr
    assert not (tmp_path / "rows.csv").exists()


def test_rows_are_appended_below_one_header(tmp_path, harness):
    path = tmp_path / "rows.csv"
    harness.append(path, [{"case": "a", "seconds": 1}])
    harness.append(path, [{"case": "b", "seconds": 2}, {"case": "c", "seconds": 3}])
    assert path.read_text() == "case,seconds\na,1\nb,2\nc,3\n"
    with pytest.raises(SystemExit, match="has the columns"):
        harness.append(path, [{"case": "d", "metres": 4}])


@pytest.mark.torch
@pytest.mark.parametrize("case", ["res18 33x62", "swin_tiny 36x64"])
def test_the_peer_predicts_the_same_as_the_project(tmp_path, harness, case):
    pytest.importorskip("torch")
    import peer
    import prediction

    variant = peer.case(case)[0]
    peer.write(variant, peer.weights(variant, tmp_path))
    depths = [
        prediction.QUESTION.ways[name].prepare(case, tmp_path)()["depth"]
        for name in ("torch", "jax")
    ]
    assert depths[0].shape == peer.case(case)[1:]
    np.testing.assert_allclose(depths[1], depths[0], rtol=1e-4)
