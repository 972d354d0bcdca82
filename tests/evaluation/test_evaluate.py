import csv
import json
import math

import numpy as np
import pytest

from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.evaluate import EvaluationConfig, evaluate
from diffdepth_jax.evaluation.metrics import METRICS
from diffdepth_jax.evaluation.protocols import PROTOCOLS

RELEASE = PROTOCOLS["release"]


@pytest.fixture
def samples():
    """Three frames whose red channel is the depth in metres; the second was never measured."""
    generator = np.random.default_rng(0)
    result = []
    for index in range(3):
        image = generator.integers(1, 80, (6, 8, 3), np.uint8)
        depth = image[..., 0].astype(np.float32)
        depth[generator.random(depth.shape) < 0.5] = 0
        result.append({"image": image, "depth": depth * (index != 1), "id": f"frame/{index}"})
    return result


def red(image):
    return image[..., 0].astype(np.float32)


def rows(workdir):
    with open(workdir / "per_image.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_perfect_model(samples, tmp_path):
    options = {"dataset": "kitti"}
    result = evaluate(red, samples, RELEASE, tmp_path / "new", options=options, progress=False)
    assert result == json.loads((tmp_path / "new/metrics.json").read_text())
    assert result["protocol"] == "release"
    assert result["options"] == RELEASE.options | options
    assert (result["num_images"], result["num_skipped"]) == (2, 1)
    assert result["metrics"]["abs_rel"] == 0 and result["metrics"]["delta1"] == 1
    assert set(result["metrics"]) == set(METRICS)
    assert result["baseline"] == {}
    assert result["reported"][0]["metrics"] == {"abs_rel": 0.021, "rmse": 0.98}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "metrics.json",
        "per_image.csv",
    ]


def test_means_are_over_images_and_skipped_images_have_no_part(samples, tmp_path):
    result = evaluate(lambda image: red(image) + 3, samples, RELEASE, tmp_path, progress=False)
    table = rows(tmp_path)
    assert [row["id"] for row in table] == ["frame/0", "frame/1", "frame/2"]
    assert [int(row["num_valid"]) for row in table] == [(s["depth"] > 0).sum() for s in samples]
    assert all(table[1][name] == "" for name in METRICS)
    for name in METRICS:
        values = [float(table[index][name]) for index in (0, 2)]
        assert result["metrics"][name] == pytest.approx(np.mean(values), rel=1e-12)
    for index in (0, 2):
        target = samples[index]["depth"].astype(np.float64)
        expected = RELEASE.score(red(samples[index]["image"]) + 3, target)
        assert float(table[index]["abs_rel"]) == expected.metrics["abs_rel"]
        assert float(table[index]["mean_depth"]) == target[target > 0].mean()


def test_settings_of_the_prediction_are_stated_beside_the_result(samples, tmp_path):
    options = {"flip_tta": True, "num_inference_steps": 5}
    result = evaluate(red, samples, RELEASE, tmp_path, options=options)
    assert result["options"] == RELEASE.options | options


def test_the_baseline_is_scored_alike_and_never_aligned(samples, tmp_path):
    baseline = np.full((3, 4), 20, np.float32)  # another size than the frames
    protocol = protocols.get("release", alignment="median")
    result = evaluate(red, samples, protocol, tmp_path, baseline_depth=baseline, progress=False)
    expected = [
        RELEASE.score(np.full((6, 8), 20.0), samples[index]["depth"]).metrics for index in (0, 2)
    ]
    for name in METRICS:
        assert result["baseline"][name] == pytest.approx(np.mean([e[name] for e in expected]))


def test_nonfinite_predictions_are_counted(samples, tmp_path):
    result = evaluate(
        lambda image: np.full(image.shape[:2], np.nan), samples, RELEASE, tmp_path, progress=False
    )
    measured = sum(int((sample["depth"] > 0).sum()) for sample in samples)
    assert result["num_nonfinite"] == measured and result["num_clipped"] == 0
    assert all(map(math.isfinite, result["metrics"].values()))


def test_samples_are_asked_for_one_at_a_time(tmp_path):
    alive = []

    def stream():
        for index in range(50):
            alive.append(index)
            depth = np.full((2, 2), 5, np.float32)
            yield {"image": np.zeros((2, 2, 3), np.uint8), "depth": depth, "id": str(index)}

    def predict(image):
        assert len(alive) <= len(predicted) + 1
        predicted.append(1)
        return np.ones(image.shape[:2], np.float32)

    predicted = []
    assert evaluate(predict, stream(), RELEASE, tmp_path, progress=False)["num_images"] == 50


def test_a_wrong_size_names_the_image_and_leaves_nothing(samples, tmp_path):
    def halved(image):
        return red(image)[::2]

    with pytest.raises(ValueError, match=r"image 'frame/0': the prediction is 3x8 .* 6x8"):
        evaluate(halved, samples, RELEASE, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match=r"image 'frame/0': a frame of 6x8 is smaller"):
        evaluate(red, samples, PROTOCOLS["kitti_eigen"], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/results"])
def test_a_workdir_that_cannot_be_written_is_told_before_any_prediction(samples, tmp_path, place):
    (tmp_path / "file").write_text("")

    def predict(image):
        raise AssertionError("predicted before the workdir was tried")

    with pytest.raises(OSError):
        evaluate(predict, samples, RELEASE, tmp_path / place, progress=False)


def test_what_a_model_raises_is_left_alone(samples, tmp_path):
    def predict(image):
        raise ValueError("shapes")

    with pytest.raises(ValueError, match=r"^shapes$"):
        evaluate(predict, samples, RELEASE, tmp_path / "new/out", progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "changes, dataset, differences",
    [
        ({"max_depth": 100.0}, "kitti", ["max_depth=none"]),
        ({}, "nyu", ["dataset=kitti"]),
        ({}, None, ["dataset=kitti"]),
    ],
)
def test_numbers_reported_of_something_else_are_not_comparable(
    samples, tmp_path, changes, dataset, differences
):
    protocol = protocols.get("release", **changes)
    options = {"dataset": dataset} if dataset else {}
    result = evaluate(red, samples, protocol, tmp_path, options=options, progress=False)
    assert result["reported"] == []
    (other,) = result["not_comparable"]
    assert other["metrics"]["abs_rel"] == 0.021 and other["differences"] == differences


def test_nothing_to_score_is_an_error(samples, tmp_path):
    for nothing in ([], samples[1:2]):
        with pytest.raises(ValueError, match="nothing to score"):
            evaluate(red, nothing, RELEASE, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_config_is_checked_and_builds_its_protocol():
    config = EvaluationConfig(protocol="kitti_eigen", crop_reference="full", max_depth=50.0)
    assert config.build() == protocols.get("kitti_eigen", crop_reference="full", max_depth=50.0)
    with pytest.raises(ValueError, match="crop is 'grag'"):
        EvaluationConfig(crop="grag")
