import dataclasses
import hashlib
import json
import re
import sys
import types
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.data.listing import Frame
from diffdepth_jax.data.sources import nyu
from diffdepth_jax.errors import ConfigError, DataError, MissingFileError
from diffdepth_jax.evaluation.run import checkpoint
from diffdepth_jax.evaluation.run.checks import check_data
from diffdepth_jax.evaluation.run.config import EvaluationConfig
from diffdepth_jax.evaluation.run.source_predictions import score_source_predictions
from diffdepth_jax.typing import InputSpec

RELEASE = EvaluationConfig(protocol="release")


@dataclasses.dataclass(frozen=True)
class Config:
    """Random frames whose first channel encodes the depth."""

    name: Literal["random"] = "random"
    count: int = 3
    scale: float = 1.0
    check_files: bool = True


class Source:
    def __init__(self, config):
        self._config = config

    def __len__(self):
        return self._config.count

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(1, 80, (12, 16, 3), dtype=np.uint8)
        return {
            "image": image,
            "depth": image[..., 0].astype(np.float32) * np.float32(self._config.scale),
            "intrinsics": np.ones((3, 3), np.float32),
            "id": f"frame{index}",
            "condition": "none",
        }


@pytest.fixture
def source(monkeypatch):
    """The module of the source, added to the registry."""
    module = types.SimpleNamespace(Config=Config, build=Source)
    monkeypatch.setitem(sys.modules, "random_source", module)
    monkeypatch.setitem(registry.MODULES["source"], "random", "random_source")
    return module


@pytest.fixture
def data(source):
    return experiment_data()


def experiment_data(**evaluation):
    mapping = {
        "train": {"source": {"name": "random", "count": 5}, "augmentation": {"crop": (8, 8)}},
        "evaluation": {"name": "random", **evaluation},
    }
    return config_lib.from_mapping(ExperimentData, mapping, resolve=registry.module)


class Model:
    """What evaluation needs of a `DepthModel`; predicts the red channel plus 2 m."""

    output = "metric_depth"
    input_spec = InputSpec()

    def __init__(self, weights="1"):
        self.calls = []
        self._weights = weights

    def predict(self, images, **options):
        self.calls.append((len(images), options))
        return [image[..., 0].astype(np.float32) + 2 for image in images]

    def fingerprint(self, num_inference_steps):
        return hashlib.sha256(f"{self._weights} {num_inference_steps}".encode()).hexdigest()

    def is_recalibrated(self, num_inference_steps):
        return num_inference_steps == 2


@pytest.mark.parametrize("place", ["released.pt", "orbax/460"])
def test_results_of_a_checkpoint_without_a_run_need_a_place(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch() if place.endswith(".pt") else (tmp_path / place).mkdir()
    with pytest.raises(ConfigError, match="workdir"):
        checkpoint.run_directory(tmp_path / place)
    with pytest.raises(MissingFileError, match="absent"):
        checkpoint.run_directory(tmp_path / "absent")


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/460"])
def test_results_go_into_the_run_and_not_into_its_checkpoints(tmp_path, place):
    (tmp_path / "checkpoints/460").mkdir(parents=True)
    assert checkpoint.run_directory(tmp_path / place) == tmp_path


def test_a_checkpoint_gets_results_and_a_page(data, tmp_path):
    result = checkpoint.score_checkpoint(Model(), data, RELEASE, tmp_path)["release"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json",
        "per_image.csv",
        "report.html",
    }
    assert result["num_images"] == 3 and result["baseline"]["abs_rel"] > 0
    assert result["metrics"]["mae"] == pytest.approx(2)


def test_options_of_the_prediction_reach_the_model_and_the_result(data, tmp_path):
    model = Model()
    config = EvaluationConfig(
        protocol="release",
        flip_tta=True,
        flip_average="inverse_depth",
        num_inference_steps=2,
        batch_size=2,
    )
    result = checkpoint.score_model(model, data, config, tmp_path)["release"]
    assert [count for count, _ in model.calls] == [2, 1]
    expected = {"flip_tta": True, "flip_average": "inverse_depth", "num_inference_steps": 2}
    assert model.calls[0][1] == expected | {"batch_size": 2}
    stated = expected | {"recalibrated": True, "dataset": "random"}
    assert {name: result["options"][name] for name in stated} == stated


@pytest.mark.parametrize("published", [False, True])
def test_the_mirrored_image_is_averaged_if_published_so(data, tmp_path, published):
    model = Model()
    model.input_spec = InputSpec(flip_tta=published)
    for name, chosen in (("by default", None), ("on", True), ("off", False)):
        config = dataclasses.replace(RELEASE, flip_tta=chosen)
        result = checkpoint.score_model(model, data, config, tmp_path / name)["release"]
        expected = published if chosen is None else chosen
        assert model.calls[-1][1]["flip_tta"] is result["options"]["flip_tta"] is expected


def test_results_do_not_depend_on_the_batches(data, tmp_path):
    config = EvaluationConfig(protocol="release,dense")
    for batch_size in (1, 2, 3):
        changed = dataclasses.replace(config, batch_size=batch_size)
        checkpoint.score_model(Model(), data, changed, tmp_path / str(batch_size))
    first, *others = (
        {path.name: path.read_text() for path in sorted((tmp_path / size).rglob("*.*"))}
        for size in "123"
    )
    assert len(first) == 2 and others == [first, first]


def test_disparity_is_treated_as_disparity(data, tmp_path):
    model = Model()
    model.output = "relative_disparity"
    config = EvaluationConfig(protocol="release", alignment="lsq_disparity")
    result = checkpoint.score_model(model, data, config, tmp_path)["release"]
    assert result["options"]["predicts"] == "disparity"


@pytest.mark.parametrize(
    "protocol, options, message",
    [
        ("release", {}, r"protocol release .*--alignment=lsq_disparity"),
        ("release,booster", {}, r"protocol release "),
        ("release", {"predicts": "depth"}, "predicts is 'depth', but the model predicts disparity"),
    ],
)
def test_relative_disparity_is_not_mistaken_for_metres(data, tmp_path, protocol, options, message):
    model = Model()
    model.output = "relative_disparity"
    with pytest.raises(ConfigError, match=message):
        checkpoint.score_model(
            model, data, EvaluationConfig(protocol=protocol, **options), tmp_path
        )
    assert not model.calls and not list(tmp_path.iterdir())


def test_without_the_training_data_there_is_no_baseline(
    data, source, tmp_path, monkeypatch, caplog
):
    def only_evaluation(config):
        if config.count == 5:
            raise FileNotFoundError("train/ does not exist")
        return Source(config)

    monkeypatch.setattr(source, "build", only_evaluation)
    with caplog.at_level("WARNING"):
        result = checkpoint.score_model(Model(), data, RELEASE, tmp_path)["release"]
    assert result["baseline"] == {} and result["num_images"] == 3
    assert [record.getMessage() for record in caplog.records] == [
        "no baseline, as the training data cannot be read: train/ does not exist"
    ]


@pytest.mark.parametrize(
    "label, reason",
    [
        ({"depth": np.zeros((12, 16), np.float32)}, "none of the 5 depth maps has a measurement"),
        ({"relative_disparity": np.ones((12, 16), np.float32)}, "frame0 is relative disparity"),
        (None, "no depth map was given"),
    ],
)
def test_without_measured_training_labels_there_is_no_baseline(
    data, source, tmp_path, monkeypatch, caplog, label, reason
):
    class Unmeasured(Source):
        def __getitem__(self, index):
            if self._config.count == 5 and label is None:
                raise DataError(f"frame{index} is damaged")
            return super().__getitem__(index) | (label if self._config.count == 5 else {})

    monkeypatch.setattr(source, "build", Unmeasured)
    skipping = dataclasses.replace(data, on_error="skip")
    with caplog.at_level("WARNING"):
        result = checkpoint.score_model(Model(), skipping, RELEASE, tmp_path)["release"]
    assert result["baseline"] == {} and result["num_images"] == 3
    assert reason in caplog.messages[-1] and "data.baseline_frames=0" in caplog.messages[-1]
    if label is None:  # unless damage is to be skipped, it is not mistaken for missing labels
        with pytest.raises(DataError, match="frame0 is damaged"):
            checkpoint.score_model(Model(), data, RELEASE, tmp_path)


@pytest.mark.parametrize("listed", [True, False])
def test_a_resumed_evaluation_has_the_frames_that_are_selected_now(
    data, source, tmp_path, monkeypatch, listed
):
    numbers = list(range(12))

    class Files(Source):
        def __init__(self, config):
            super().__init__(config)
            if listed:
                self.frames = [Frame(f"frame{number}", image="") for number in numbers]

        def __len__(self):
            return len(numbers)

        def __getitem__(self, index):
            return super().__getitem__(numbers[index])

    class Stopping(Model):
        def predict(self, images, **options):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().predict(images, **options)

    monkeypatch.setattr(source, "build", Files)
    data = dataclasses.replace(data, evaluation_limit=4, baseline_frames=0)
    for excluded, ids in ([], [0, 3, 6, 9]), ([10], [0, 2, 5, 8]):
        with pytest.raises(KeyboardInterrupt):
            checkpoint.score_checkpoint(Stopping(), data, RELEASE, tmp_path)
        numbers[:] = [number for number in numbers if number not in excluded]
        model = Model()
        checkpoint.score_checkpoint(model, data, RELEASE, tmp_path)
        lines = (tmp_path / "per_image.csv").read_text().splitlines()[1:]
        assert [line.split(",")[0] for line in lines] == [f"frame{number}" for number in ids]
        # The rest, or all if the selection changed; then the page's.
        scored = len(model.calls) - len(ids)
        assert scored == (4 if excluded else 2)


def test_a_result_names_its_data_but_not_their_path():
    config = nyu.Config(root="some/place", split="test", layout="mat", mat_depth="rawDepths")
    assert checkpoint.measured(config) == {
        "dataset": "nyu",
        "split": "test",
        "layout": "mat",
        "mat_depth": "rawDepths",
    }


def test_evaluation_data_are_checked_before_training(data):
    with pytest.raises(ValueError, match="12x16 is smaller than the kb crop"):
        check_data(data, EvaluationConfig(protocol="kitti_eigen"))


@pytest.mark.parametrize("scale, depths", [(1000.0, "000 m"), (1e-5, "0.00079 m")])
def test_depth_in_the_wrong_unit_is_an_error_before_training(source, scale, depths):
    data = experiment_data(scale=scale)
    with pytest.raises(
        DataError, match=rf"data\.evaluation: .* 0% .*0\.001 to 80 m .*dense.*{depths}.*unit"
    ):
        check_data(data, EvaluationConfig(protocol="dense"))


def test_edge_metrics_on_sparse_depth_are_an_error_before_training(source, data, monkeypatch):
    class Sparse(Source):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            seen = np.random.default_rng(index).random((12, 16)) < 0.1
            return sample | {"depth": sample["depth"] * seen}

    config = EvaluationConfig(protocol="dense", boundary=True)
    check_data(data, config)
    monkeypatch.setattr(source, "build", Sparse)
    with pytest.raises(DataError, match=r"image 'frame0': the boundary metrics need dense"):
        check_data(data, config)


def test_unreadable_frames_do_not_stop_the_check(source, monkeypatch, caplog):
    damaged = {0, 1, 3}  # those whose depth would be checked

    class Damaged(Source):
        def __getitem__(self, index):
            if index in damaged:
                raise DataError(f"frame{index} is damaged")
            return super().__getitem__(index)

    monkeypatch.setattr(source, "build", Damaged)
    data = dataclasses.replace(experiment_data(count=5), on_error="skip")
    data = dataclasses.replace(
        data, train=dataclasses.replace(data.train, depth_range=(1e-3, 80.0))
    )
    config = EvaluationConfig(protocol="dense")
    check_data(data, config)
    assert re.search(r"data\.train\.source: none .* can be read", caplog.messages[-1])
    assert not [message for message in caplog.messages if message.startswith("data.evaluation")]
    wrong = experiment_data(count=5, scale=1000.0)
    with pytest.raises(DataError, match=r"data\.evaluation: .* 0% "):
        check_data(dataclasses.replace(data, evaluation=wrong.evaluation), config)


def test_samples_are_scored_by_mean_and_spread(data, tmp_path):
    class Drawing(Model):
        def check_num_samples(self, num_samples):
            assert num_samples == 3

        def predict(self, images, **options):
            assert options.pop("num_samples") == 3
            means = super().predict(images, **options)
            return means, [mean / 10 for mean in means]

    config = dataclasses.replace(RELEASE, num_samples=3, batch_size=2)
    result = checkpoint.score_checkpoint(Drawing(), data, config, tmp_path)["release"]
    assert result["metrics"]["mae"] == pytest.approx(2)
    assert result["metrics"]["ause"] == pytest.approx(0)  # the error is the same everywhere
    assert result["options"]["num_samples"] == 3
    assert 'alt="sparsification curve"' in (tmp_path / "report.html").read_text()


def test_the_likely_scale_is_suggested(source, monkeypatch):
    config = dataclasses.make_dataclass(
        "Scaled", [("depth_scale", float, 1.0)], bases=(Config,), frozen=True
    )
    monkeypatch.setattr(source, "Config", config)
    data = experiment_data(scale=1000.0)
    with pytest.raises(DataError, match=r"depth_scale, now 1\.0, be 1000\?"):
        check_data(data, EvaluationConfig(protocol="dense"))
    # In training the range comes from the config.
    train = dataclasses.replace(data.train, depth_range=(0.1, 0.5))
    data = dataclasses.replace(experiment_data(), train=train)
    with pytest.raises(DataError, match=r"data\.train\.source: .*0\.1 to 0\.5 m"):
        check_data(data, EvaluationConfig(protocol="dense"))


def test_depth_mostly_outside_the_range_is_a_warning(source, caplog):
    config = EvaluationConfig(protocol="dense", max_depth=3.0)
    check_data(experiment_data(), config)
    (record,) = caplog.records
    assert "0.001 to 3 m" in record.getMessage()
    caplog.clear()
    check_data(experiment_data(), EvaluationConfig(protocol="dense"))
    assert not caplog.records


def saved(folder, *names):
    for name in names:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        index = int(name[-1])
        depth = Source(Config())[index]["depth"]
        np.save(path, depth + 2)
    return folder


def test_predictions_of_a_source_by_its_ids(data, tmp_path):
    folder = saved(tmp_path / "saved", "frame0", "deep/frame1", "frame2")
    protocols = EvaluationConfig(protocol="release").build_all()
    result = score_source_predictions(folder, data, protocols, tmp_path / "out", progress=False)
    result = result["release"]
    assert result["num_images"] == 3 and result["metrics"]["mae"] == pytest.approx(2)
    assert result["baseline"]["abs_rel"] > 0
    expected = {"dataset": "random", "predictions": "npy", "predictions_without_ground_truth": 0}
    assert expected.items() <= result["options"].items()
    assert (tmp_path / "out/report.html").read_text().count('alt="image"') == 3
    (folder / "frame2.npy").unlink()
    with pytest.raises(DataError, match=r"1 of 3 have no prediction .*: frame2; it has deep"):
        score_source_predictions(folder, data, protocols, tmp_path / "no", progress=False)
    assert not (tmp_path / "no").exists()


def test_classes_and_conditions_come_from_the_source(source, tmp_path, monkeypatch):
    class Tabletops(Source):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            mask = np.arange(16)[None, :].repeat(12, axis=0) < 8
            return sample | {"tom_mask": mask, "condition": "night" if index else "day-clear"}

    monkeypatch.setattr(source, "build", Tabletops)
    folder = saved(tmp_path / "saved", "frame0", "frame1", "frame2")
    config = EvaluationConfig(protocol="cleargrasp,nuscenes", max_depth=80.0, alignment="none")
    found = score_source_predictions(
        folder, experiment_data(), config.build_all(), tmp_path / "out", progress=False
    )
    classes = found["cleargrasp"]["classes"]
    assert list(classes) == ["ToM", "Other"] and classes["ToM"]["metrics"]["mae_mm"] > 0
    conditions = found["nuscenes"]["conditions"]
    assert {name: part["num_images"] for name, part in conditions.items()} == {
        "day-clear": 1,
        "night": 2,
    }


def kitti_tree(root):
    """Two drives whose frames have the same names."""
    generator = np.random.default_rng(0)
    for drive in ("0001", "0002"):
        name = f"2011_09_26_drive_{drive}_sync"
        images = root / f"2011_09_26/{name}/image_02/data"
        depths = root / f"val/{name}/proj_depth/groundtruth/image_02"
        images.mkdir(parents=True), depths.mkdir(parents=True)
        for index in (5, 6):
            file = f"{index:010d}.png"
            Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(images / file)
            depth = generator.integers(256, 256 * 60, (6, 8)).astype(np.uint16)
            Image.fromarray(depth).save(depths / file)
    return root


@pytest.mark.parametrize("start", ["", "2011_09_26/", "model/2011_09_26/"])
def test_predictions_in_the_folders_of_kitti_images(tmp_path, start):
    root = kitti_tree(tmp_path / "kitti")
    source = {"name": "kitti", "root": str(root), "split": "val", "cameras": ("image_02",)}
    data = config_lib.from_mapping(
        ExperimentData,
        {
            "train": {"source": source, "augmentation": {"crop": (4, 4)}},
            "evaluation": source,
            "baseline_frames": 0,
        },
        resolve=registry.module,
    )
    saved = tmp_path / "saved"
    for path in (root / "val").rglob("*.png"):
        drive = path.parts[-5]
        target = saved / f"{start}{drive}/image_02/data/{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.with_stem(f"{target.stem}_colour").write_bytes(b"not a depth map")
    protocols = EvaluationConfig(protocol="release").build_all()
    result = score_source_predictions(saved, data, protocols, tmp_path / "out", progress=False)
    result = result["release"]
    assert result["num_images"] == 4 and result["metrics"]["abs_rel"] == 0
    assert result["options"]["predictions_without_ground_truth"] == 4
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("0000000005", "0000000006"):
        (flat / f"{name}.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"0000000005 .* matches both .*drive_0001.* and .*drive_0002"
    ):
        score_source_predictions(flat, data, protocols, tmp_path / "no", progress=False)
