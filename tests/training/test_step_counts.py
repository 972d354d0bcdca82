"""Training with drawn numbers of steps ends with decoder statistics for each number."""

import warnings

import jax
import numpy as np
import pytest

from diffdepth_jax import inference
from diffdepth_jax.inference import recalibration
from diffdepth_jax.training import experiment, loop, step_counts

COUNTS = (1, 2)


@pytest.fixture
def config(tiny):
    tiny["model"] = {
        "name": "diffusion_depth",
        "encoder": {"name": "resnet", "depths": (1,), "widths": (4,)},
        "neck": {"features": 8},
        "codec": {"latent_channels": 4, "initial_depth": 5.0},
        "denoiser": {"hidden_features": 8},
        "diffusion": {
            "num_inference_steps": 2,
            "timestep_spacing": "trailing",
            "prediction_type": "sample",
        },
    }
    tiny["objective"] = {"name": "self_diffusion", "l2": 0.0, "step_counts": COUNTS}
    tiny["num_steps"] = 2
    return tiny


def _distil(config, teacher):
    """Trains a student that starts from this sampler with 2 steps and learns to need only 1."""
    changes = {"init": {"network": str(teacher)}, "teacher": {"checkpoint": str(teacher)}}
    model = config["model"] | {
        "diffusion": config["model"]["diffusion"] | {"num_inference_steps": 1}
    }
    objective = {"name": "consistency_distillation", "l2": 0.0, "step_counts": COUNTS}
    exp = experiment.from_mapping(config | changes | {"model": model, "objective": objective})
    loop.train(exp, teacher / "student")
    student = inference.load(teacher / "student")
    assert student.model.num_inference_steps == 1 and list(student.recalibrated) == [2]
    assert "consistency" in (teacher / "student" / "metrics.csv").read_text()


def test_the_checkpoint_has_statistics_for_every_number_drawn(config, tmp_path):
    exp = experiment.from_mapping(config)
    loop.train(exp, tmp_path)
    model = inference.load(tmp_path)
    assert sorted(model.recalibrated) == [1]
    images = step_counts.training_images(exp)
    assert len(images) == step_counts.NUM_IMAGES and images[0].shape == (8, 8, 3)
    want = recalibration.decoder_statistics(model.model, model.variables, images, 1)
    jax.tree.map(np.testing.assert_array_equal, model.recalibrated[1], want)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of statistics for another number of steps
        for count in COUNTS:
            assert np.isfinite(model.predict(picture, num_inference_steps=count)).all()

    _distil(config, tmp_path)

    # A finished run is left alone.
    found = (tmp_path / "checkpoints").rglob("recalibrated.json")
    written = {path: path.stat().st_mtime_ns for path in found}
    assert len(written) == 1
    loop.train(exp, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_fixed_number_of_steps_needs_no_statistics(config, tmp_path, monkeypatch):
    config["objective"]["step_counts"] = ()
    monkeypatch.setattr(inference, "load", lambda path: pytest.fail("nothing to compute"))
    step_counts.recalibrate(experiment.from_mapping(config), tmp_path)
