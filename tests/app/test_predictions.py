"""What is computed from an image, and the texts and pictures that describe it."""

import dataclasses
import re

import numpy as np
import pytest

from diffdepth_jax import visualize
from diffdepth_jax.app import predictions
from diffdepth_jax.app.predictions import Options, Prediction


def test_depth_and_its_denoising(denoising, upload):
    prediction = predictions.predict(denoising, upload, Options(seed=3))
    np.testing.assert_array_equal(prediction.depth, denoising.predict(upload.image, seed=3))
    np.testing.assert_array_equal(prediction.steps, denoising.trajectory(upload.image, seed=3))
    assert prediction.is_metric and prediction.spread is None and prediction.seconds > 0

    captions = predictions.step_captions(prediction)
    assert len(captions) == len(prediction.steps) == denoising.model.num_inference_steps == 2
    change = np.abs(prediction.steps[0] / prediction.steps[1] - 1).mean()
    assert captions == [
        f"after step 1 of 2: depth differs by {change:.1%} on average from the last step's",
        "after step 2 of 2",
    ]
    pictures = predictions.step_pictures(prediction)
    np.testing.assert_array_equal(pictures[1], visualize.colour_depth(prediction.steps[1]))
    assert (pictures[0] != pictures[1]).any()


def test_several_samples(denoising, upload):
    options = Options(num_samples=3, seed=1)
    prediction = predictions.predict(denoising, upload, options)
    mean, spread = denoising.predict(upload.image, num_samples=3, seed=1)
    np.testing.assert_array_equal(prediction.depth, mean)
    np.testing.assert_array_equal(prediction.spread, spread)
    picture = predictions.spread_picture(prediction)
    np.testing.assert_array_equal(picture, visualize.colour_spread(spread, mean))
    most = np.percentile(spread / mean, 98)
    assert f">{most:.2%}</span>" in predictions.spread_legend(prediction)


def test_only_numbers_of_steps_that_suit_the_checkpoint(denoising, relative, upload):
    assert predictions.step_choices(denoising) == [2]
    recalibrated = denoising.recalibrate([upload.image], 1)
    assert predictions.step_choices(recalibrated) == [1, 2]
    assert len(predictions.predict(recalibrated, upload, Options(1)).steps) == 1
    assert predictions.step_choices(relative) == []


def test_relative_disparity_is_labelled_as_such(relative, upload):
    prediction = predictions.predict(relative, upload, Options())
    assert not prediction.is_metric and len(prediction.steps) == 0
    assert predictions.step_captions(prediction) == predictions.step_pictures(prediction) == []
    summary, legend = predictions.summary(prediction), predictions.legend(prediction)
    assert "relative disparity" in summary and not re.search(r"\d m\b", summary)
    assert "relative, no unit" in legend and "metres" not in legend
    np.testing.assert_array_equal(
        predictions.picture(prediction), visualize.colour_disparity(prediction.depth)
    )
    assert "relative disparity" in predictions.describe(relative)


def test_descriptions(denoising, upload):
    assert predictions.describe(denoising) == (
        "network diffusion_depth, predicts depth in metres, at most 80 m, 2 denoising steps"
    )
    depth = np.linspace(2, 40, 23 * 38, dtype=np.float32).reshape(23, 38)
    prediction = Prediction(upload, depth, "metric_depth", depth[None], None, 1.25)
    assert predictions.summary(prediction) == (
        "38 x 23 pixels (resized from 380 x 230) · depth from 2 m to 40 m, median 21 m · 1.2 s"
    )
    legend = predictions.legend(prediction)
    low, high = visualize.depth_range(depth)
    places = dict(re.findall(r'left: ([\d.]+)%">(\d+)<', legend))
    assert list(places.values()) == ["3", "5", "10", "20", "30"]
    for place, tick in places.items():
        expected = 100 * np.log(float(tick) / low) / np.log(high / low)
        assert float(place) == pytest.approx(expected, abs=0.01)
    unknown = dataclasses.replace(prediction, depth=np.zeros_like(depth))
    assert "depth in metres" in predictions.legend(unknown)


def test_programs_of_many_sizes_do_not_pile_up(monkeypatch):
    cleared = []
    monkeypatch.setattr(predictions.jax, "clear_caches", lambda: cleared.append(1))
    monkeypatch.setattr(predictions, "_programs", set())
    for size in (*range(predictions._MOST_PROGRAMS), 0, 1):
        predictions._forget_programs(size)
    assert not cleared
    predictions._forget_programs(-1)
    assert cleared == [1] and predictions._programs == {-1}


def test_one_prediction_at_a_time(upload):
    class Model:
        model, output, denoises = None, "metric_depth", False

        def predict(self, image, *_):
            assert not predictions._ONE_AT_A_TIME.acquire(blocking=False)
            return np.ones(image.shape[:2], np.float32)

    predictions.predict(Model(), upload, Options())
    assert predictions._ONE_AT_A_TIME.acquire(blocking=False)
    predictions._ONE_AT_A_TIME.release()
