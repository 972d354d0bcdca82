import copy
import csv
import json
import os
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_parts
from PIL import Image
from training_client import events_of

import diffdepth_jax
from diffdepth_jax import locking, visualize
from diffdepth_jax.data import pipeline
from diffdepth_jax.errors import ConfigError, DataError, DivergedError, FileError
from diffdepth_jax.processes import Processes
from diffdepth_jax.training import debugging, distributed, experiment, loop, periodic
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.interruption import Interrupted, Interruption
from diffdepth_jax.training.logging import RunLog


def state_of(workdir, step):
    """Everything in a checkpoint, as NumPy, and the position in the data."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(workdir.resolve() / "checkpoints" / str(step) / "state")
    data = next((workdir / "checkpoints" / str(step) / "data").glob("metadata")).read_bytes()
    return jax.tree.map(np.asarray, state), data


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(mapping, workdir):
    loop.train(experiment.from_mapping(mapping), workdir)


class Killed(Exception):
    pass


def kill_at(monkeypatch, batch):
    """Makes the data stream raise at this batch; returns the ids of all batches before."""
    given = []
    original = pipeline.TrainIterator.__next__

    def dying(self):
        if batch is not None and len(given) == batch:
            raise Killed
        result = original(self)
        given.append(list(result["id"]))
        return result

    monkeypatch.setattr(pipeline.TrainIterator, "__next__", dying)
    return given


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path, monkeypatch):
    tiny["ema_decay"] = 0.9
    with monkeypatch.context() as patch:
        whole_order = kill_at(patch, None)
        train(tiny, tmp_path / "whole")
    with monkeypatch.context() as patch:
        first_order = kill_at(patch, 5)  # After the checkpoint of step 3, during step 6.
        with pytest.raises(Killed):
            train(tiny, tmp_path / "parts")
    with monkeypatch.context() as patch:
        second_order = kill_at(patch, None)
        train(tiny, tmp_path / "parts")

    assert len(second_order) == 3
    assert first_order[:3] + second_order == whole_order
    one, one_data = state_of(tmp_path / "whole", 6)
    other, other_data = state_of(tmp_path / "parts", 6)
    assert one["step"] == 6 and one["params"] and one["batch_stats"] and one["ema_params"]
    equal(one, other)
    assert one_data == other_data
    logs = [
        [row["step"] for row in rows_of(tmp_path / name / "metrics.csv")]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1] == ["2", "4", "6"]


def test_the_run_directory_is_complete(tiny, tmp_path):
    result = loop.train_and_evaluate(tiny, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "checkpoints",
        "metrics.csv",
        "tensorboard",
        "metrics.json",
        "evaluations.csv",
        "best.json",
        "per_image.csv",
        "curves.png",
        "predictions.png",
    }  # The tiny network has no sampler, so there is no denoising.png.
    assert result == json.loads((tmp_path / "metrics.json").read_text())
    assert result["num_images"] == 3 and result["baseline"]["abs_rel"] > 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert (
        config["model"] == {"name": "tiny", "features": 4, "max_depth": None}
        and config["seed"] == 0
    )
    assert len(rows_of(tmp_path / "per_image.csv")) == 3
    with Image.open(tmp_path / "predictions.png") as picture:
        picture.load()


def test_training_learns_and_depends_only_on_the_seed(tiny, tmp_path):
    tiny["num_steps"] = 40
    tiny["checkpoint"]["every_steps"] = 40
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny | {"seed": seed}, tmp_path / name)
    a, b, c = (state_of(tmp_path / name, 40)[0]["params"] for name in "abc")
    equal(a, b)
    assert not all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(c)))
    rows = rows_of(tmp_path / "a" / "metrics.csv")
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


def test_a_finished_run_is_left_alone_and_a_longer_one_continues(tiny, tmp_path, monkeypatch):
    train(tiny, tmp_path)
    given = kill_at(monkeypatch, None)
    train(tiny, tmp_path)
    assert not given
    train(tiny | {"num_steps": 8}, tmp_path)
    assert len(given) == 2 and (tmp_path / "checkpoints" / "8").is_dir()


def test_another_config_in_the_same_workdir_is_refused_by_field(tiny, tmp_path):
    train(tiny, tmp_path)
    other = copy.deepcopy(tiny)
    other["model"]["features"] = 8
    other["optimizer"]["learning_rate"] = 0.5
    with pytest.raises(ConfigError, match=r"model.features: 4 -> 8; .*learning_rate: 0.01 -> 0.5"):
        train(other, tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)a different config.*Conv_0/kernel.*8\)"):
        loop.train(experiment.from_mapping(other), tmp_path, allow_config_changes=True)
    other["model"]["features"] = 4
    other["num_steps"] = 7
    loop.train(experiment.from_mapping(other), tmp_path, allow_config_changes=True)
    assert rows_of(tmp_path / "metrics.csv")[-1]["learning_rate"] == "0.5"


def test_fields_that_affect_no_step_may_change(tiny, tmp_path):
    train(tiny, tmp_path)
    harmless = copy.deepcopy(tiny)
    harmless["data"]["train"]["num_threads"] = 3
    harmless["data"]["baseline_frames"] = 7
    harmless["data"]["evaluation_limit"] = 2
    harmless["mesh"] = {"fsdp": 2}
    harmless["evaluation"]["every_steps"] = 2
    harmless["checkpoint"]["best_metric"] = "delta1"
    train(harmless, tmp_path)


def test_a_loss_that_is_not_finite_stops_naming_step_images_and_checkpoint(tiny, tmp_path):
    tiny["data"]["train"]["source"]["count"] = 12
    tiny["data"]["train"]["source"]["nan_image"] = position = 7
    tiny["checkpoint"]["every_steps"] = 1
    tiny["objective"]["weight"] = 2.0
    with pytest.raises(DivergedError) as caught:
        train(tiny, tmp_path)
    message = str(caught.value)
    assert f"frame{position}" in message and "loss is nan in step" in message
    step = int(message.split(" in step ")[1].split()[0])
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert (checkpointer.latest_step() or 0) == step - 1
    assert message.endswith(f"step {step - 1}" if step > 1 else "none")


def test_the_operation_that_produced_a_nan_is_found(tiny, tmp_path, monkeypatch):
    network = sys.modules["tiny_network"].Network
    original = network.__call__

    def spoilt(self, image, *arguments, **options):
        return original(self, image + jnp.log(-1.0 - image**2), *arguments, **options)

    monkeypatch.setattr(network, "__call__", nn.compact(spoilt))
    with pytest.raises(DivergedError) as caught:
        loop.train(experiment.from_mapping(tiny), tmp_path, debug_nans=True)
    message = str(caught.value)
    assert "loss is nan in step 1 (images frame" in message
    assert "encountered in log at " in message and "test_loop.py:" in message
    assert "jnp.log(-1.0 - image**2)" in message
    assert message.endswith("none")


def test_a_backward_nan_is_found_too(tiny):
    """The square root has no finite slope at zero; the loss itself is fine."""
    text = debugging.find_nan(jax.grad(lambda x: jnp.sqrt(0 * x).sum()), jnp.ones(3))
    assert "encountered in mul at " in text and "jnp.sqrt(0 * x)" in text
    assert "no operation" in debugging.find_nan(jnp.sum, jnp.ones(3))


def evaluated(tiny, every_steps=2):
    tiny = copy.deepcopy(tiny)
    tiny["evaluation"]["every_steps"] = every_steps
    tiny["checkpoint"] = {"every_steps": 3, "keep": 1, "best_metric": "abs_rel"}
    return tiny | {"ema_decay": 0.5}


def test_periodic_evaluations_do_not_affect_training_and_find_the_best(tiny, tmp_path):
    with_evaluations = loop.train_and_evaluate(evaluated(tiny), tmp_path / "with")
    without = loop.train_and_evaluate(evaluated(tiny, None), tmp_path / "without")
    equal(state_of(tmp_path / "with", 6)[0], state_of(tmp_path / "without", 6)[0])
    assert with_evaluations == without

    rows = rows_of(tmp_path / "with" / "evaluations.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert float(rows[-1]["abs_rel"]) == without["metrics"]["abs_rel"]
    assert float(rows[-1]["baseline_abs_rel"]) == without["baseline"]["abs_rel"]
    best = min(rows, key=lambda row: float(row["abs_rel"]))
    note = json.loads((tmp_path / "with" / "best.json").read_text())
    assert note == {"step": int(best["step"]), "metric": "abs_rel", "value": float(best["abs_rel"])}
    kept = {path.name for path in (tmp_path / "with" / "checkpoints").iterdir()}
    assert {"6", best["step"]} <= kept and len(kept) <= 2
    # The best one as it was evaluated: with the averaged parameters.
    model = diffdepth_jax.load(tmp_path / "with", step="best")
    exp = experiment.from_mapping(tiny)
    result = periodic.score_model(model, exp.data, exp.evaluation, tmp_path / "again")["release"]
    assert result["metrics"]["abs_rel"] == pytest.approx(note["value"], rel=1e-5)

    events = [
        value
        for path in (tmp_path / "with" / "tensorboard" / "evaluation").iterdir()
        for event in events_of(path)
        for value in event.summary.value
    ]
    assert sum(value.tag == "evaluation/abs_rel" for value in events) == 3
    pictures = [value.image for value in events if value.tag == "predictions"]
    assert len(pictures) == 3 and pictures[0].height > 100


@pytest.mark.parametrize("output", ["metric_depth", "relative_disparity"])
@pytest.mark.parametrize("count", [2, 3])
def test_the_picture_shows_predictions_as_they_are_scored(
    tiny, tmp_path, monkeypatch, output, count
):
    def blank(self, index):  # the third frame has no ground truth
        sample = read(self, index)
        return sample | {"depth": sample["depth"] * (index != 2)}

    read = tiny_parts.Source.__getitem__
    monkeypatch.setattr(tiny_parts.Source, "__getitem__", blank)
    monkeypatch.setattr(tiny_parts.MODULES["network"], "OUTPUT", output)
    drawn, draw = [], visualize.save_predictions
    monkeypatch.setattr(
        visualize, "save_predictions", lambda *args: (drawn.append(args), draw(*args))
    )
    tiny["num_steps"] = 1
    tiny["data"]["evaluation"]["count"] = count
    tiny["evaluation"]["alignment"] = "lsq_disparity"
    loop.train_and_evaluate(tiny, tmp_path)
    ((_, images, predictions, targets, scores),) = drawn
    expected = [float(row["abs_rel"] or "nan") for row in rows_of(tmp_path / "per_image.csv")]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert {each.shape[:2] for each in (*images, *predictions, *targets)} == {(12, 16)}
    for prediction, target, score in zip(predictions[:2], targets[:2], scores[:2], strict=True):
        seen = target > 0
        error = np.abs(prediction - target)[seen] / target[seen]
        assert error.mean() == pytest.approx(score)
    assert all(np.isnan(each).all() for each in predictions[2:])


def test_an_interrupted_evaluation_is_repeated(tiny, tmp_path, monkeypatch):
    """Interrupted by a signal or killed while evaluating step 4, whose state is saved."""
    tiny = evaluated(tiny)
    evaluate, calls = periodic.score_model, []

    def dying(action):
        def function(*arguments, **options):
            calls.append(1)
            if len(calls) == 2:
                action()
            return evaluate(*arguments, **options)

        return function

    def die():
        raise Killed

    with monkeypatch.context() as patch:
        stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(periodic, "score_model", dying(stop))
        with pytest.raises(Interrupted, match="SIGTERM: step 4 is saved"):
            train(tiny, tmp_path)
    assert [row["step"] for row in rows_of(tmp_path / "evaluations.csv")] == ["2"]
    calls[:] = [1]
    with monkeypatch.context() as patch:
        patch.setattr(periodic, "score_model", dying(die))
        with pytest.raises(Killed):
            train(tiny, tmp_path)
    with monkeypatch.context() as patch:
        given = kill_at(patch, None)
        loop.train_and_evaluate(tiny, tmp_path)
    assert len(given) == 2
    assert [row["step"] for row in rows_of(tmp_path / "evaluations.csv")] == ["2", "4", "6"]


def test_a_second_or_unhandled_signal_acts_as_usual():
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bach_size": 2}, r"config.bach_size.*batch_size"),
        ({"batch_size": "two"}, r"config.batch_size.*int"),
        ({"batch_size": 3}, r"batch_size 3 .* 2 devices"),
        ({"num_steps": 0}, "num_steps"),
        ({"seed": -1}, "seed"),
        ({"mesh": {"fsdp": 3}}, "mesh.fsdp 3"),
        ({"evaluation": {"every_steps": 0}}, "every_steps"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"model": {"name": "tinny"}}, "tiny"),
    ],
)
def test_an_unusable_config_leaves_no_trace(tiny, tmp_path, change, message):
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        train(tiny | change, workdir)
    assert not workdir.exists()


def test_several_processes_cannot_search_for_a_nan(tiny, tmp_path, monkeypatch):
    two = Processes(0, 2, lambda message: [message] * 2)
    monkeypatch.setattr(distributed, "processes", lambda: two)
    with pytest.raises(ConfigError, match=r"debug_nans needs a single process, not 2"):
        loop.train(experiment.from_mapping(tiny), tmp_path / "run", debug_nans=True)
    assert not (tmp_path / "run").exists()


def test_the_loop_waits_for_the_device_only_to_save(tiny, tmp_path, monkeypatch):
    """Except for the log, which lags a few steps; its own tests cover that."""
    noted = []

    def noting(cls, name, note):
        original = getattr(cls, name)

        def method(self, *arguments):
            noted.append(note(*arguments))
            return original(self, *arguments)

        monkeypatch.setattr(cls, name, method)

    noting(RunLog, "add", lambda step, *_: step)
    noting(RunLog, "flush", lambda: "flush")
    noting(Checkpointer, "save", lambda step, *_: f"save {step}")
    train(tiny, tmp_path)
    assert noted == [1, 2, 3, "flush", "save 3", 4, 5, 6, "flush", "save 6"]


def test_a_workdir_belongs_to_one_run_at_a_time(tiny, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with locking.hold(workdir, "training"):
        for run in (train, loop.train_and_evaluate):
            with pytest.raises(FileError) as caught:
                run(tiny, workdir)
            for fact in (str(workdir), f"process {os.getpid()} "):
                assert fact in str(caught.value)
        assert [path.name for path in workdir.iterdir()] == [".training.lock"]
    train(tiny, workdir)
    assert not (workdir / ".training.lock").exists()


def test_half_written_files_of_a_killed_process_are_removed(tiny, tmp_path):
    code = f"""
import os, pathlib
from diffdepth_jax import atomic
atomic.write(pathlib.Path({str(tmp_path)!r}) / "config.json", lambda _: os.kill(os.getpid(), 9))
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    train(tiny, tmp_path)
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


def test_an_empty_workdir_does_not_mean_the_current_one(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="workdir is empty"):
        loop.train_and_evaluate(tiny, "")
    assert not list(tmp_path.iterdir())


def test_evaluation_data_are_checked_before_anything_is_written(tiny, tmp_path):
    tiny["evaluation"] = {"protocol": "kitti_eigen"}
    with pytest.raises(ValueError, match="12x16 is smaller than the kb crop"):
        loop.train_and_evaluate(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_system_error_is_reported_with_the_last_good_checkpoint(tiny, tmp_path, monkeypatch):
    def broken(self):
        if self._position == 4:
            raise OSError(5, "Input/output error", "frame.png")
        return original(self)

    original = pipeline.TrainIterator.__next__
    monkeypatch.setattr(pipeline.TrainIterator, "__next__", broken)
    with pytest.raises(FileError) as caught:
        train(tiny, tmp_path)
    message = str(caught.value)
    assert "Input/output error" in message and "frame.png" in message
    assert message.endswith(f"last good checkpoint in {tmp_path / 'checkpoints'}: step 3")


@pytest.mark.parametrize(
    "content",
    [
        b"step,protocol,abs_rel\nfour,release,0.1\n",
        b"step,protocol,abs_rel\n4,release,bad\n",
        b"step,protocol,abs_rel\n4\n",
        b"something else\n4\n",
        b"\xff\xfe" * 1000,
    ],
)
def test_a_damaged_list_of_evaluations_is_named_and_left_alone(tiny, tmp_path, content):
    path = tmp_path / "evaluations.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        train(tiny, tmp_path)
    assert str(path) in str(caught.value) and "remove it" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert path.read_bytes() == content


def test_a_damaged_note_of_the_best_checkpoint_is_rewritten(tiny, tmp_path):
    train(evaluated(tiny), tmp_path)
    note = (tmp_path / "best.json").read_text()
    (tmp_path / "best.json").write_text("{")
    train(evaluated(tiny), tmp_path)
    assert (tmp_path / "best.json").read_text() == note


def test_a_checkpoint_with_an_outdated_config_is_an_error_that_says_so(tiny, tmp_path, monkeypatch):
    train(tiny, tmp_path)
    monkeypatch.setattr(Checkpointer, "config", lambda self, step: {"stepps": 6})
    with pytest.raises(ConfigError) as caught:
        train(tiny, tmp_path)
    for fact in (str(tmp_path), "stepps", "--allow_config_changes"):
        assert fact in str(caught.value)
    loop.train(experiment.from_mapping(tiny), tmp_path, allow_config_changes=True)


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 2**31},
        {"optimizer": {"warmup_steps": 2**31}},
        {"optimizer": {"schedule": "steps", "boundaries": (2**31,), "factors": (0.1,)}},
    ],
)
def test_more_steps_than_the_counter_can_hold_are_refused(tiny, change):
    with pytest.raises(ConfigError, match=r"steps|boundaries") as caught:
        experiment.from_mapping(tiny | change)
    assert "2**31" in str(caught.value)
