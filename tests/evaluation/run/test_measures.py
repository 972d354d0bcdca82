"""Evaluations that also measure depth edges and the spread of samples."""

import csv
import json

import numpy as np
import pytest

from diffdepth_jax import run_files
from diffdepth_jax.data import resampling
from diffdepth_jax.errors import ConfigError, DataError
from diffdepth_jax.evaluation import boundary, protocols, uncertainty
from diffdepth_jax.evaluation.run import checkpoint
from diffdepth_jax.evaluation.run.config import EvaluationConfig
from diffdepth_jax.evaluation.run.dataset import score_dataset

DENSE = protocols.get("dense")
EDGES = protocols.get("dense", boundary=True)


def samples(count=5):
    """A box in front of a wall with one unmeasured corner; the second scene has no box."""
    found = []
    for index in range(count):
        depth = np.full((20, 30), 30.0, np.float32)
        if index != 1:
            depth[5:15, 4 + index : 14 + index] = 10 + index
        depth[:4, 20:] = 0
        image = np.random.default_rng(index).integers(0, 256, (20, 30, 3), np.uint8)
        found.append({"image": image, "depth": depth, "id": f"frame{index}", "number": index})
    return found


class Predictor:
    """The truth with noise, and the size of the noise per pixel; the image seeds the noise."""

    def __init__(self, spread=True, stop_after=100):
        self.count, self._spread, self._stop_after = 0, spread, stop_after

    def __call__(self, images):
        return [self._one(image) for image in images]

    def _one(self, image):
        if self.count == self._stop_after:
            raise KeyboardInterrupt
        self.count += 1
        (sample,) = [each for each in samples() if (each["image"] == image).all()]
        generator = np.random.default_rng(int(image.sum()))
        spread = generator.gamma(1, 0.5, image.shape[:2])
        depth = np.where(sample["depth"] > 0, sample["depth"], 30)
        mean = np.maximum(depth + spread * generator.normal(0, 1, spread.shape), 1.0)
        return (mean, spread) if self._spread else mean


def score(predict, protocol, workdir, given=None, **settings):
    given = samples() if given is None else given
    found = score_dataset(predict, given, (protocol,), workdir, progress=False, **settings)
    return found and found[protocol.name]


def rows(workdir):
    with open(workdir / run_files.PER_IMAGE, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_hold_what_the_functions_return(tmp_path):
    result = score(Predictor(), EDGES, tmp_path)
    assert json.loads((tmp_path / run_files.METRICS).read_text()) == result
    values, curves = {}, []
    for sample, row in zip(samples(), rows(tmp_path), strict=True):
        mean, spread = Predictor()._one(sample["image"])
        arrays = mean, sample["depth"].astype(np.float64), sample["depth"] > 0
        of_spread = uncertainty.compute(spread, *arrays)
        expected = boundary.compute(*arrays) | of_spread.metrics
        curves.append(of_spread.curves)
        for name in protocols.MEASURES:
            if name in expected:
                assert float(row[name]) == pytest.approx(expected[name], rel=1e-12)
                values.setdefault(name, []).append(float(row[name]))
            else:
                assert row[name] == "" and sample["number"] == 1 and "boundary" in name
    assert list(result["metrics"]) == [*DENSE.metrics, *protocols.MEASURES]
    for name, of_images in values.items():
        assert result["metrics"][name] == pytest.approx(np.mean(of_images))
    assert result["num_images_of"] == dict.fromkeys(boundary.METRICS, 4)
    for name in uncertainty.CURVES:
        expected = np.mean([each[name] for each in curves], axis=0)
        np.testing.assert_allclose(result["sparsification"][name], expected)
    assert result["sparsification"]["removed"] == list(uncertainty.REMOVED)


def test_extra_measures_change_nothing_else(tmp_path):
    """Byte for byte, except for what is added."""
    baseline = {"baseline_depth": np.full((20, 30), 20.0, np.float32)}
    plain = score(Predictor(spread=False), DENSE, tmp_path / "plain", **baseline)
    found = score(Predictor(), EDGES, tmp_path / "measured", **baseline)
    assert set(found) - set(plain) == {"num_images_of", "sparsification"}
    assert set(found["baseline"]) - set(plain["baseline"]) == set(boundary.METRICS)
    for result in (plain, found):
        result.pop("num_images_of", None), result.pop("sparsification", None)
        for part in ("metrics", "baseline"):
            result[part] = {name: result[part][name] for name in DENSE.metrics}
    assert json.dumps(found) == json.dumps(plain)
    first, second = (rows(tmp_path / name) for name in ("plain", "measured"))
    assert [{name: row[name] for name in first[0]} for row in second] == first
    assert set(second[0]) - set(first[0]) == set(protocols.MEASURES)


def test_an_interrupted_evaluation_is_resumed_and_shards_fit_together(tmp_path):
    settings = {"fingerprint": "weights"}
    score(Predictor(), EDGES, tmp_path / "whole")
    place = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        score(Predictor(stop_after=2), EDGES, place, **settings)
    # Rows without edges belong to another evaluation.
    other = Predictor()
    score(other, DENSE, place, **settings)
    assert other.count == 5
    assert score(Predictor(), EDGES, place, shard=(1, 2), **settings) is None
    rest = Predictor()
    score(rest, EDGES, place, **settings)
    assert rest.count == 2  # 0 and 1 were done, 3 by the shard
    for name in (run_files.METRICS, run_files.PER_IMAGE):
        assert (place / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_edge_metrics_on_sparse_depth_are_refused(tmp_path):
    given = samples()
    generator = np.random.default_rng(0)
    given[2]["depth"] = given[2]["depth"] * (generator.random((20, 30)) < 0.1)
    with pytest.raises(DataError, match=r"image 'frame2': the boundary metrics need dense"):
        score(Predictor(), EDGES, tmp_path, given)
    with pytest.raises(DataError, match="no image has a depth edge"):
        score(Predictor(), EDGES, tmp_path / "flat", samples()[1:2])
    assert not list(tmp_path.glob("**/metrics.json"))


def test_the_spread_is_transformed_like_the_mean():
    """Resized, cropped, pasted into the full frame, multiplied by the fitted scale."""
    generator = np.random.default_rng(0)
    target = generator.uniform(5, 50, (40, 60))
    mean, spread = target[::2, ::2] * 0.5, generator.uniform(0.1, 1, (20, 30))
    protocol = protocols.get("dense", resize_prediction="bilinear")
    compared = protocol.compare((mean, spread), {"depth": target})
    resized = resampling.resize(spread, (40, 60), "bilinear", align_corners=True)
    np.testing.assert_array_equal(compared.spread, resized)

    aligned = protocols.get("dense", alignment="median").compare(
        (target * 0.5, target * 0.1), {"depth": target}
    )
    np.testing.assert_allclose(aligned.prediction, target)
    np.testing.assert_allclose(aligned.spread, target * 0.2)

    depth = generator.uniform(5, 50, (375, 1242))
    kb = protocols.get("kitti_eigen", crop="none", crop_reference="full")
    compared = kb.compare((np.ones((352, 1216)), np.ones((352, 1216))), {"depth": depth})
    assert np.isnan(compared.spread).sum() == depth.size - 352 * 1216
    found = kb.score((np.full((352, 1216), 9.0), generator.random((352, 1216))), depth)
    assert 0.45 < found.metrics["spread"] < 0.55  # over the pixels that have one


class Model:
    """What evaluation needs of a model that draws samples."""

    output = "metric_depth"

    class input_spec:
        flip_tta = False

    def __init__(self):
        self.asked = []

    def check_num_samples(self, num_samples):
        self.asked.append(num_samples)

    def is_recalibrated(self, num_inference_steps):
        return False


def test_the_number_of_samples_reaches_the_model_and_the_result():
    model = Model()
    _, predicting, stated = checkpoint.settings(model, EvaluationConfig(protocol="dense"))
    assert "num_samples" not in predicting | stated and not model.asked
    config = EvaluationConfig(protocol="dense", num_samples=4)
    _, predicting, stated = checkpoint.settings(model, config)
    assert predicting["num_samples"] == stated["num_samples"] == 4 and model.asked == [4]
    model.output = "relative_disparity"
    config = EvaluationConfig(protocol="dense", num_samples=4, alignment="lsq_disparity")
    with pytest.raises(ConfigError, match="predicts relative disparity: leave it out"):
        checkpoint.settings(model, config)


def test_the_config_is_checked_and_builds_its_protocol():
    (protocol,) = EvaluationConfig(protocol="dense", boundary=True).build_all()
    assert protocol == EDGES and protocol.measuring == ("boundary",) and not DENSE.measuring
    assert protocol.options == DENSE.options
    for number in (1, 0):
        with pytest.raises(ValueError, match=f"num_samples is {number}; it must be at least 2"):
            EvaluationConfig(num_samples=number)
