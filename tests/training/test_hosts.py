"""Several processes train one model as one would, through signals, deaths and restarts."""

import csv
import json

import numpy as np
import pytest
import tiny_parts
from training_client import batches, errors_of, rows_of

from diffdepth_jax.weights import orbax

# Each of the eight devices has a part of the state (see "divided") and one image per batch.
EXPERIMENT = tiny_parts.EXPERIMENT | {
    "num_steps": 12,
    "batch_size": 8,
    "ema_decay": 0.9,
    # Adam divides a gradient by its own size, which blows up rounding errors of zero gradients
    # (those of a bias before BatchNorm). With a larger epsilon they stay small.
    "optimizer": {"learning_rate": 1e-2, "eps": 1e-3},
    "model": {"name": "tiny", "features": 8},
    "evaluation": {"protocol": "release", "every_steps": 3},
    "logging": {"every_steps": 1},
    "checkpoint": {"every_steps": 3},
}
BOTH = {"processes": 2, "devices": 4, "divided": 1}


def go(server, workdir, *, mesh=None, changes=None, **job):
    server.start(EXPERIMENT | {"mesh": mesh or {}} | (changes or {}), workdir, **job)
    return server.wait()


def assert_close(workdir, other):
    """Losses and gradient norms agree up to the order of sums over a batch."""
    for row, expected in zip(rows_of(workdir), rows_of(other), strict=True):
        values, wanted = (np.array(list(each.values()), float) for each in (row, expected))
        np.testing.assert_allclose(values, wanted, rtol=5e-6, err_msg=row["step"])


@pytest.mark.slow
def test_two_processes_train_as_one_through_a_signal_and_a_death(server, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert go(server, alone) == 0, errors_of(alone)

    # One process is asked to stop: both do, after the same step.
    stopped = {"batch": 4, "number": 15}
    assert go(server, together, mesh={"fsdp": 8}, signal=stopped, **BOTH) == [143, 143]
    stopped_after = orbax.latest_step(together)
    assert 4 <= stopped_after <= 6
    for suffix in ("", "1"):
        assert f"step {stopped_after} is saved" in (together / f"errors{suffix}.txt").read_text()

    # One dies and takes the other with it; the checkpoint before that stays.
    codes = go(server, together, mesh={"fsdp": 8}, kill={"batch": 11}, **BOTH)
    assert codes == [-9, -9]
    assert orbax.latest_step(together) == 9

    # A single process continues from what eight devices of two processes saved in parts.
    assert go(server, together) == 0, errors_of(together)
    assert [position for position, _ in batches(together)][-3:] == [10, 11, 12]
    assert [row["step"] for row in rows_of(together)] == [str(step + 1) for step in range(12)]
    assert_close(together, alone)

    # Each read and held only its part; results cover all images and are written once.
    order = {suffix: (together / f"order{suffix}.txt").read_text() for suffix in ("", "1")}
    of_two = [line.split() for line in order[""].splitlines()[:stopped_after]]
    whole = [line.split() for line in (alone / "order.txt").read_text().splitlines()]
    others = [line.split() for line in order["1"].splitlines()]
    for first, second, batch in zip(of_two, others, whole, strict=False):
        assert first + second[1:] == batch
    states = [int((path / "bytes.txt").read_text()) for path in (alone, together)]
    assert int((together / "bytes1.txt").read_text()) < 0.3 * states[0] == 0.3 * states[1]
    for name in ("evaluations.csv", "per_image.csv"):
        with (together / name).open() as ours, (alone / name).open() as theirs:
            for row, other in zip(csv.DictReader(ours), csv.DictReader(theirs), strict=True):
                assert row.keys() == other.keys()
                for column in row:
                    if column in ("id", "condition", "protocol", "error"):
                        assert row[column] == other[column]
                    else:
                        assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-5)


@pytest.mark.slow
def test_a_teacher_labels_for_two_processes_that_share_the_list_of_skips(server, tmp_path):
    changes = {"num_steps": 2, "evaluation": {"protocol": "release"}}
    assert go(server, tmp_path / "teacher", changes=changes) == 0
    source = {"name": "tiny", "pairs": True, "count": 40, "broken": tuple(range(0, 40, 5))}
    train = {**EXPERIMENT["data"]["train"], "source": source}
    changes |= {
        "teacher": {"checkpoint": str(tmp_path / "teacher")},
        "data": {**EXPERIMENT["data"], "train": train, "on_error": "skip"},
    }
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert go(server, alone, changes=changes) == 0, errors_of(alone)
    assert go(server, together, mesh={"fsdp": 8}, changes=changes, **BOTH) == [0, 0]
    assert_close(together, alone)
    skipped = [json.loads((path / "skipped.json").read_text()) for path in (alone, together)]
    assert skipped[0] == skipped[1] and skipped[0]["num_skipped"] > 1
