import json
from pathlib import Path

import numpy as np
import pytest
from training_client import events_of

from diffdepth_jax.errors import DataError, DivergedError, FileError
from diffdepth_jax.training import logging
from diffdepth_jax.training.events import EventWriter
from diffdepth_jax.training.logging import LoggingConfig, RunLog, read_csv


def write(workdir, steps, first_step=0, num_steps=7, loss=lambda step: float(step)):
    with RunLog(workdir, first_step=first_step, num_steps=num_steps, every_steps=2) as log:
        for step in steps:
            log.add(step, {"loss": loss(step), "learning_rate": 0.5})
        log.flush()


def test_rows_hold_the_means_of_their_steps(tmp_path):
    write(tmp_path, range(1, 8))
    columns = read_csv(tmp_path / "metrics.csv")
    assert columns["step"] == [2, 4, 6, 7]  # The last step of the run always gets a row.
    assert columns["loss"] == [1.5, 3.5, 5.5, 7.0]
    assert columns["learning_rate"] == [0.5] * 4


def test_the_speed_is_over_the_steps_since_the_last_row(tmp_path, monkeypatch):
    times = iter([100.0, 104.0, 105.0, 105.5, 105.75])  # for the first step, then for each row
    monkeypatch.setattr(logging.time, "perf_counter", lambda: next(times))
    write(tmp_path, range(1, 8))
    assert read_csv(tmp_path / "metrics.csv")["steps_per_second"] == [0.5, 2.0, 4.0, 4.0]


def test_a_resumed_run_replaces_rows_written_after_its_checkpoint(tmp_path):
    write(tmp_path, range(1, 7))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("8,1.0")  # Truncated by a crash.
    write(tmp_path, range(5, 8), first_step=4, loss=lambda step: -float(step))
    columns = read_csv(tmp_path / "metrics.csv")
    assert columns["step"] == [2, 4, 6, 7]
    assert columns["loss"] == [1.5, 3.5, -5.5, -7.0]


def test_a_log_that_does_not_write_still_finds_errors(tmp_path):
    settings = {"first_step": 0, "num_steps": 4, "every_steps": 2, "writes": False}
    with (
        pytest.raises(DivergedError, match="loss is nan in step 3"),
        RunLog(tmp_path, **settings) as log,
    ):
        for step, loss in enumerate((1.0, 2.0, float("nan")), 1):
            log.add(step, {"loss": loss})
        log.flush()
    assert not list(tmp_path.iterdir())


def test_a_run_from_the_start_replaces_an_older_file(tmp_path):
    write(tmp_path, range(1, 7))
    write(tmp_path, range(1, 4), num_steps=3)
    assert read_csv(tmp_path / "metrics.csv")["step"] == [2, 3]


def test_a_row_that_spans_a_checkpoint_is_complete_after_resuming(tmp_path):
    def log(name, first_step, state=None):
        return RunLog(
            tmp_path / name, first_step=first_step, num_steps=6, every_steps=3, state=state
        )

    def add(run, steps):
        for step in steps:
            run.add(step, {"loss": 1 / step})
        run.flush()

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    with log("whole", 0) as run:
        add(run, range(1, 7))
    with log("parts", 0) as run:
        add(run, range(1, 6))
        state = run.get_state()
        add(run, [6])  # Perhaps while a thread writes the state of step 5.
        state = json.loads(json.dumps(state))
    with log("parts", 5, state) as run:
        add(run, [6])
    whole, parts = (read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "parts"))
    assert parts["step"] == whole["step"] and parts["loss"] == whole["loss"]


@pytest.mark.parametrize(
    "content", [b"step,loss\nfour,1.0\n", b"loss\n1.0\n", b"\xff\x00", b"a\n1"]
)
def test_the_error_for_a_damaged_log_says_what_to_do(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    for use in (lambda: write(tmp_path, range(5, 8), first_step=4), lambda: read_csv(path)):
        with pytest.raises(DataError) as caught:
            use()
        assert str(path) in str(caught.value) and "remove it" in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["metrics.csv", "events.out.tfevents"])
def test_a_log_on_a_full_disk_is_named_with_the_cause(tmp_path, monkeypatch, name):
    original = Path.open

    def full(self, mode="r", *arguments, **options):
        if self.name.startswith(name):
            return open("/dev/full", mode.replace("x", "w"), *arguments, **options)
        return original(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(FileError, match=rf"{name}.* cannot be written: No space left on device"):
        write(tmp_path, range(1, 8))


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write(tmp_path, range(1, 8))
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = [
        (event.step, value.simple_value)
        for event in events_of(path)
        for value in event.summary.value
        if value.tag == "train/loss"
    ]
    np.testing.assert_allclose(found, [(2, 1.5), (4, 3.5), (6, 5.5), (7, 7.0)])


def test_writers_started_within_the_same_second_write_separate_files(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1234567890.5)
    for step in range(12):
        with EventWriter(tmp_path, first_step=step) as writer, EventWriter(tmp_path, step) as other:
            writer.add_scalar("number", 2.0 * step, step)
            other.add_scalar("number", 2.0 * step + 1, step)
    values = [
        value.simple_value
        for path in sorted(tmp_path.iterdir())  # in TensorBoard's order
        for event in events_of(path)
        for value in event.summary.value
    ]
    assert values == list(range(24))


def test_events_of_a_killed_run_are_on_disk_and_repeated_steps_are_purged(tmp_path):
    writer = EventWriter(tmp_path, first_step=0)
    writer.add_scalar("loss", 1.0, 5)
    (path,) = tmp_path.iterdir()
    assert [value.tag for event in events_of(path) for value in event.summary.value] == ["loss"]
    with EventWriter(tmp_path, first_step=4), writer:
        (new,) = set(tmp_path.iterdir()) - {path}
    restart = [event for event in events_of(new) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in restart] == [(5, 1)]  # START


def test_scalars_that_the_file_lacks_are_refused(tmp_path):
    write(tmp_path, range(1, 5))
    log = RunLog(tmp_path, first_step=4, num_steps=7, every_steps=2)
    with pytest.raises(ValueError, match="another workdir"), log:
        log.add(5, {"loss": 1.0, "l2": 1.0})
        log.add(6, {"loss": 1.0, "l2": 1.0})
        log.flush()


def test_scalars_are_read_a_few_steps_later_or_by_flush(tmp_path):
    fetched = []

    class Scalar:
        """Records when its value is read."""

        def __init__(self, step):
            self.step = step

        def __float__(self):
            fetched.append(self.step)
            return 1.0

    with RunLog(tmp_path, first_step=0, num_steps=6, every_steps=1) as log:
        for step in range(1, 7):
            log.add(step, {"loss": Scalar(step)})
        assert max(fetched) == 4
        log.flush()
    assert max(fetched) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stops_naming_step_and_images(tmp_path, value):
    with RunLog(tmp_path, first_step=0, num_steps=6, every_steps=1) as log:
        log.add(1, {"loss": 1.0, "l2": np.inf}, ["one"])
        log.add(2, {"loss": 1.0, "gradient_norm": np.float32(value)}, np.array(["two", "three"]))
        with pytest.raises(
            DivergedError, match=r"gradient_norm is (nan|inf) in step 2 .*two, three"
        ):
            log.flush()


@pytest.mark.parametrize("useless", [{"flat_labels": 1.0}, {"valid_fraction": 0.0}])
def test_a_run_stops_if_all_labels_are_useless(tmp_path, useless):
    def log(workdir, scalars, first_step=0, num_steps=60):
        workdir.mkdir()
        with RunLog(workdir, first_step=first_step, num_steps=num_steps, every_steps=5) as log:
            for step, extra in enumerate(scalars, first_step + 1):
                log.add(step, {"loss": 0.0, "flat_labels": 0.0, "valid_fraction": 1.0} | extra)
            log.flush()

    log(tmp_path / "one of them can", [*[useless] * 49, {}, *[useless] * 10])
    log(tmp_path / "others could before", [useless] * 55, first_step=5)
    log(tmp_path / "the first are not proof", [useless] * 49)
    with pytest.raises(DataError, match="no label in the first 50 steps is usable"):
        log(tmp_path / "none can", [useless] * 50)
    with pytest.raises(DataError, match="no label in the first 3 steps is usable"):
        log(tmp_path / "none can to the end", [useless] * 3, num_steps=3)


def test_an_interval_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="every_steps"):
        LoggingConfig(every_steps=0)
