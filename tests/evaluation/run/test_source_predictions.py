"""Saved predictions against data sets in their official layouts, under every allowed name."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.data.sources import booster, cleargrasp, nyu
from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.run.source_predictions import score_source_predictions
from diffdepth_jax.inference import files
from diffdepth_jax.typing import InputSpec


def nyu_h5(request):
    frames = [("official", 2), ("official", 5)]
    root = request.getfixturevalue("write_nyu")(frames, "val", "h5", (480, 640))
    return nyu.Config(root=str(root), split="test"), "nyu"


def nyu_sync(request):
    """Two scenes that share a frame number."""
    frames = [("bathroom", 45), ("bathroom", 46), ("kitchen", 45)]
    write = request.getfixturevalue("write_nyu")
    root = write(frames, "official_splits/test", "sync", (480, 640))
    return nyu.Config(root=str(root), layout="sync", split="test"), "nyu"


def nyu_one_scene(request):
    """A single scene, for which `predict.py` makes no folder."""
    write = request.getfixturevalue("write_nyu")
    root = write([("attic", 0), ("attic", 7)], "official_splits/test", "sync", (480, 640))
    return nyu.Config(root=str(root), layout="sync", split="test"), "nyu"


def nyu_mat(request):
    write = request.getfixturevalue("write_labelled_nyu")
    root = write(4, train=[1, 3], test=[2, 4], size=(480, 640))
    return nyu.Config(root=str(root), layout="mat", split="test"), "nyu"


def booster_train(request):
    """Images of a scene share its ground truth; image names repeat between scenes."""
    root = request.getfixturevalue("booster_root")
    return booster.Config(root=str(root), split="train"), "booster"


def cleargrasp_real(request):
    """Image names repeat between cameras."""
    root = request.getfixturevalue("cleargrasp_root")
    return cleargrasp.Config(root=str(root), split="real"), "cleargrasp"


def cleargrasp_synthetic(request):
    root = request.getfixturevalue("cleargrasp_root")
    return cleargrasp.Config(root=str(root), split="synthetic-val"), "cleargrasp"


LAYOUTS = [nyu_h5, nyu_sync, nyu_mat, booster_train, cleargrasp_real, cleargrasp_synthetic]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


def samples_of(config):
    return pipeline.evaluation_samples(config)


def save(folder: Path, name: str, depth: np.ndarray) -> None:
    path = folder / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.where(depth > 0, depth, 5.0).astype(np.float32))


def unaligned(protocol):
    """Compares depth with depth as stored, so that the right prediction has no error."""
    protocol = protocols.get(protocol, predicts="depth", alignment="none")
    # Booster's own ground truth is a quarter of the size.
    return dataclasses.replace(protocol, ground_truth="depth")


def assert_exact(result) -> None:
    """The prediction is the ground truth: no error in any class."""
    errors = {name: value for name, value in result["metrics"].items() if "rmse" in name}
    assert errors and max(errors.values()) < 1e-2, errors  # metres or millimetres


def score(predicted, config, protocol, out):
    data = ExperimentData(train=None, evaluation=config, baseline_frames=0)
    return score_source_predictions(predicted, data, [protocol], out, progress=False)[protocol.name]


@every_layout
def test_predictions_are_found_by_the_frames_ids(layout, request, tmp_path):
    config, protocol = layout(request)
    samples = samples_of(config)
    for sample in samples:
        save(tmp_path / "predicted", sample["id"], sample["depth"])
    result = score(tmp_path / "predicted", config, unaligned(protocol), tmp_path / "out")
    assert result["num_images"] == len(samples) > 0
    assert_exact(result)
    assert result["options"]["predictions_without_ground_truth"] == 0
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [
        (nyu_sync, "rgb_*.png"),
        (nyu_one_scene, "rgb_*.png"),
        (booster_train, "im*.png"),
        (cleargrasp_real, "*-rgb-img.jpg"),
        (cleargrasp_synthetic, "*-rgb.jpg"),
    ],
)
def test_predictions_are_found_in_the_folders_that_predict_writes(
    layout, pattern, request, tmp_path
):
    """Also among predictions of other images."""
    config, protocol = layout(request)
    samples = samples_of(config)
    images = sorted(Path(config.root).rglob(pattern))
    predicted = tmp_path / "predicted"
    assert not files.predict_files(_FiveMetres(), images, predicted)
    common = os.path.commonpath([image.parent for image in images])
    for index, sample in enumerate(samples):
        image = Path(samples.frame(index).image).relative_to(common)
        assert (predicted / image).with_suffix(".npy").exists()
        save(predicted, str(image.with_suffix("")), sample["depth"])
    result = score(predicted, config, unaligned(protocol), tmp_path / "out")
    assert result["num_images"] == len(samples) > 0
    assert_exact(result)
    unused = 2 * len(images) - len(samples)  # pictures of depth match too
    assert result["options"]["predictions_without_ground_truth"] == unused


def test_scenes_merged_into_one_folder_are_not_mixed_up(request, tmp_path):
    config, protocol = booster_train(request)
    for number in range(12):
        save(tmp_path / "flat", f"im{number}", np.ones((12, 16)))
    with pytest.raises(DataError, match=r"im0 in .*flat matches both .*Bathroom.* and .*Vodka"):
        score(tmp_path / "flat", config, unaligned(protocol), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _FiveMetres:
    output = "metric_depth"
    input_spec = InputSpec()

    def predict(self, images, batch_size):
        del batch_size
        return [np.full(image.shape[:2], 5.0, np.float32) for image in images]
