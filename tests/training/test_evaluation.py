import dataclasses
import json
import types
from typing import ClassVar

import jax
import numpy as np
import pytest

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.data.sources import nyu
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.training import evaluation, experiment

CONFIG = {
    "name": "diffusion_depth",
    "encoder": {"name": "resnet", "depths": (1, 1), "widths": (4, 8)},
    "neck": {"features": 8},
    "codec": {"latent_channels": 4, "initial_depth": 10.0},
    "denoiser": {"hidden_features": 4, "num_groups": 2},
    "diffusion": {"num_inference_steps": 3, "eta": 0.5},
}


def test_the_last_denoising_step_is_the_prediction():
    network = registry.module("network", "diffusion_depth")
    config = config_lib.chosen("network", CONFIG, resolve=registry.module, path="model")
    model = network.build(config)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    depth_model = DepthModel(model, variables, config)
    depths = evaluation.denoising_steps(depth_model, image)
    assert depths.shape == (3, 8, 12)
    np.testing.assert_allclose(depths[-1], depth_model.predict(image), rtol=1e-4)
    assert np.abs(depths[0] - depths[-1]).max() > 1e-2
    recalibrated = depth_model.recalibrate([image], 2)
    depths = evaluation.denoising_steps(recalibrated, image, 2)
    want = recalibrated.predict(image, num_inference_steps=2)
    np.testing.assert_allclose(depths[-1], want, rtol=1e-4)


@pytest.mark.parametrize("place", ["released.pt", "orbax/460"])
def test_results_of_a_checkpoint_without_a_run_need_a_place(tiny, tmp_path, place, monkeypatch):
    monkeypatch.setattr(evaluation.inference, "load", lambda path: pytest.fail("it was loaded"))
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch() if place.endswith(".pt") else (tmp_path / place).mkdir()
    with pytest.raises(ConfigError, match="workdir"):
        evaluation.evaluate_checkpoint(tiny, tmp_path / place)


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/460"])
def test_results_go_into_the_run_not_among_its_checkpoints(tiny, tmp_path, place, monkeypatch):
    (tmp_path / "checkpoints/460").mkdir(parents=True)
    monkeypatch.setattr(evaluation.inference, "load", lambda path: ConstantModel())
    result = evaluation.evaluate_checkpoint(tiny, tmp_path / place)
    result = result["release"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert (tmp_path / "report.html").exists()
    assert result["num_images"] == 3 and result["baseline"]["abs_rel"] > 0
    assert [path.name for path in (tmp_path / "checkpoints").rglob("*")] == ["460"]


def test_without_the_training_data_there_is_no_baseline(tiny, tmp_path, monkeypatch, caplog):
    build = registry.module("source", "tiny").build

    def only_evaluation(config):
        if config.count == 5:
            raise FileNotFoundError("train/ does not exist")
        return build(config)

    monkeypatch.setattr(registry.module("source", "tiny"), "build", only_evaluation)
    with caplog.at_level("WARNING"):
        result = evaluation.evaluate(experiment.from_mapping(tiny), ConstantModel(), tmp_path)
    assert result["baseline"] == {} and result["num_images"] == 3
    assert [record.getMessage() for record in caplog.records] == [
        "no baseline, as the training data cannot be read: train/ does not exist"
    ]


def test_recalibrated_statistics_are_stated_beside_the_result(tiny, tmp_path, monkeypatch):
    exp = experiment.from_mapping(tiny)
    found = {steps: {"var": np.ones(1)} for steps in (None, 2)}
    monkeypatch.setattr(ConstantModel, "variables_at", lambda self, steps: found[steps])
    monkeypatch.setattr(ConstantModel, "variables", found[None])
    for steps in (None, 2):
        settings = dataclasses.replace(exp.evaluation, num_inference_steps=steps)
        changed = dataclasses.replace(exp, evaluation=settings)
        options = evaluation.evaluate(changed, ConstantModel(), tmp_path)["options"]
        assert options["recalibrated"] is (steps == 2)


def test_a_result_says_of_which_data_it_is_but_not_where_they_lie():
    source = nyu.Config(root="some/place", split="test", layout="mat", mat_depth="rawDepths")
    assert evaluation._measured(source) == {
        "dataset": "nyu",
        "split": "test",
        "layout": "mat",
        "mat_depth": "rawDepths",
    }


def test_evaluation_data_are_tried_before_training(tiny):
    tiny["evaluation"] = {"protocol": "kitti_eigen"}
    with pytest.raises(ValueError, match="12x16 is smaller than the kb crop"):
        evaluation.check_data(experiment.from_mapping(tiny))


class ConstantModel(DepthModel):
    config = types.SimpleNamespace(name="tiny")
    variables: ClassVar = {}

    def __init__(self):
        """Needs no network."""

    def predict(self, image, flip_tta, num_inference_steps):
        return np.full(image.shape[:2], 5, np.float32)
