import copy
import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.config import ConfigError
from diffdepth_jax.data import pipeline
from diffdepth_jax.training import experiment, loop
from diffdepth_jax.training.checkpoint import Checkpointer


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
    """Makes the data stream raise when this batch is asked for; returns all ids it gave."""
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
        first_order = kill_at(patch, 5)  # After the checkpoint of step 3, within step 6.
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


def test_the_run_directory_holds_what_it_promises(tiny, tmp_path):
    result = loop.train_and_evaluate(tiny, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "checkpoints",
        "metrics.csv",
        "tensorboard",
        "metrics.json",
        "per_image.csv",
        "curves.png",
        "predictions.png",
    }  # The tiny network has no sampler, so there is no denoising.png.
    assert result == json.loads((tmp_path / "metrics.json").read_text())
    assert result["num_images"] == 3 and result["baseline"]["abs_rel"] > 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"] == {"name": "tiny", "features": 4} and config["seed"] == 0
    assert len(rows_of(tmp_path / "per_image.csv")) == 3
    with Image.open(tmp_path / "predictions.png") as picture:
        picture.load()


def test_training_learns_and_the_seed_decides_everything(tiny, tmp_path):
    tiny["num_steps"] = 40
    tiny["checkpoint"]["every_steps"] = 40
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny | {"seed": seed}, tmp_path / name)
    a, b, c = (state_of(tmp_path / name, 40)[0]["params"] for name in "abc")
    equal(a, b)
    assert not all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(c)))
    rows = rows_of(tmp_path / "a" / "metrics.csv")
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


def test_a_finished_run_is_left_alone_and_a_longer_one_goes_on(tiny, tmp_path, monkeypatch):
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
    harmless = copy.deepcopy(tiny)
    harmless["data"]["train"]["num_threads"] = 3
    harmless["data"]["baseline_frames"] = 7
    train(harmless, tmp_path)


def test_a_loss_that_is_not_finite_stops_with_step_images_and_checkpoint_named(tiny, tmp_path):
    tiny["data"]["train"]["source"]["count"] = 12
    tiny["data"]["train"]["source"]["nan_image"] = position = 7
    tiny["checkpoint"]["every_steps"] = 1
    tiny["objective"]["weight"] = 2.0
    with pytest.raises(FloatingPointError) as caught:
        train(tiny, tmp_path)
    message = str(caught.value)
    assert f"frame{position}" in message and "loss is nan in step" in message
    step = int(message.split(" in step ")[1].split()[0])
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert (checkpointer.latest_step() or 0) == step - 1
    assert message.endswith(f"step {step - 1}" if step > 1 else "none")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bach_size": 2}, r"config.bach_size.*batch_size"),
        ({"batch_size": "two"}, r"config.batch_size.*int"),
        ({"batch_size": 3}, r"batch_size 3 .* 2 devices"),
        ({"num_steps": 0}, "num_steps"),
        ({"seed": -1}, "seed"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"model": {"name": "tinny"}}, "tiny"),
    ],
)
def test_a_config_that_cannot_be_used_leaves_no_trace(tiny, tmp_path, change, message):
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        train(tiny | change, workdir)
    assert not workdir.exists()


def test_the_loop_itself_costs_little(tiny, tmp_path):
    """200 steps/s are asked for on two idle cores; the bar here leaves room for a busy machine."""
    tiny["num_steps"] = 300
    tiny["data"]["train"]["cache"] = True
    tiny["data"]["train"]["source"]["count"] = 1000
    tiny["checkpoint"]["every_steps"] = 100
    tiny["logging"]["every_steps"] = 100
    train(tiny, tmp_path)
    rows = rows_of(tmp_path / "metrics.csv")
    assert max(float(row["steps_per_second"]) for row in rows) > 50
