import contextlib
import csv
import errno
import io
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax import atomic
from diffdepth_jax.errors import DataError, FileError
from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.metrics import METRICS
from diffdepth_jax.evaluation.protocols import PROTOCOLS
from diffdepth_jax.evaluation.report import results
from diffdepth_jax.evaluation.report.rows import Row
from diffdepth_jax.evaluation.run import dataset as dataset_lib
from diffdepth_jax.evaluation.run import journal
from diffdepth_jax.evaluation.run.config import EvaluationConfig
from diffdepth_jax.evaluation.run.dataset import parse_shard, score_dataset
from diffdepth_jax.processes import Processes
from tests.together import together

RELEASE = PROTOCOLS["release"]


@pytest.fixture
def samples():
    """Three frames whose red channel is the depth in metres; the second has no ground truth."""
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


def score_each(predict, samples, protocols, workdir, **settings):
    """`score_dataset` with a function that predicts one image."""

    def predict_fn(images):
        return [predict(image) for image in images]

    return score_dataset(predict_fn, samples, protocols, workdir, **settings)


def score(predict, samples, protocol, workdir, **settings):
    found = score_each(predict, samples, (protocol,), workdir, **settings)
    return found and found[protocol.name]


def rows(workdir):
    with open(workdir / "per_image.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_perfect_model(samples, tmp_path):
    options = {"dataset": "kitti", "depth": "groundtruth"}
    result = score(red, samples, RELEASE, tmp_path / "new", options=options, progress=False)
    assert result == json.loads((tmp_path / "new/metrics.json").read_text())
    assert result["protocol"] == "release"
    assert result["options"] == RELEASE.options | options
    assert (result["num_images"], result["num_skipped"]) == (2, 1)
    assert result["metrics"]["abs_rel"] == 0 and result["metrics"]["delta1"] == 1
    assert set(result["metrics"]) == set(METRICS)
    assert result["baseline"] == {}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "metrics.json",
        "per_image.csv",
    ]


def test_means_are_over_images_without_the_skipped_ones(samples, tmp_path):
    result = score(lambda image: red(image) + 3, samples, RELEASE, tmp_path, progress=False)
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


def test_prediction_settings_are_recorded_with_the_result(samples, tmp_path):
    options = {"flip_tta": True, "num_inference_steps": 5}
    result = score(red, samples, RELEASE, tmp_path, options=options)
    assert result["options"] == RELEASE.options | options


def test_the_baseline_is_scored_like_a_model_but_never_aligned(samples, tmp_path):
    baseline = np.full((3, 4), 20, np.float32)  # not the frames' size
    protocol = protocols.get("release", alignment="median")
    result = score(red, samples, protocol, tmp_path, baseline_depth=baseline, progress=False)
    expected = [
        RELEASE.score(np.full((6, 8), 20.0), samples[index]["depth"]).metrics for index in (0, 2)
    ]
    for name in METRICS:
        assert result["baseline"][name] == pytest.approx(np.mean([e[name] for e in expected]))


def test_nonfinite_predictions_are_counted(samples, tmp_path):
    result = score(
        lambda image: np.full(image.shape[:2], np.nan), samples, RELEASE, tmp_path, progress=False
    )
    measured = sum(int((sample["depth"] > 0).sum()) for sample in samples)
    assert result["num_nonfinite"] == measured and result["num_clipped"] == 0
    assert all(map(math.isfinite, result["metrics"].values()))


def test_samples_are_read_one_at_a_time(tmp_path):
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
    assert score(predict, stream(), RELEASE, tmp_path, progress=False)["num_images"] == 50


def test_a_wrong_size_names_the_image_and_leaves_nothing(samples, tmp_path):
    def halved(image):
        return red(image)[::2]

    with pytest.raises(ValueError, match=r"image 'frame/0': the prediction is 3x8 .* 6x8"):
        score(halved, samples, RELEASE, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match=r"image 'frame/0': a frame of 6x8 is smaller"):
        score(red, samples, PROTOCOLS["kitti_eigen"], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/results"])
def test_an_unwritable_workdir_is_an_error_before_any_prediction(samples, tmp_path, place):
    (tmp_path / "file").write_text("")

    def predict(image):
        raise AssertionError("predicted before the workdir was checked")

    with pytest.raises(OSError):
        score(predict, samples, RELEASE, tmp_path / place, progress=False)


def test_errors_of_the_model_are_passed_through(samples, tmp_path):
    def predict(image):
        raise ValueError("shapes")

    with pytest.raises(ValueError, match=r"^shapes$"):
        score(predict, samples, RELEASE, tmp_path / "new/out", progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "changes, options, differences",
    [
        ({"max_depth": 100.0}, {"dataset": "kitti", "depth": "groundtruth"}, ["max_depth=none"]),
        ({}, {"dataset": "kitti", "depth": "dense"}, ["depth=groundtruth"]),
        ({}, {"dataset": "nyu"}, ["dataset=kitti", "depth=groundtruth"]),
        ({}, {}, ["dataset=kitti", "depth=groundtruth"]),
        ({}, {"dataset": "kitti", "depth": "groundtruth"}, []),
    ],
)
def test_numbers_reported_on_other_data_are_not_comparable(
    samples, tmp_path, changes, options, differences
):
    protocol = protocols.get("release", **changes)
    result = score(red, samples, protocol, tmp_path, options=options, progress=False)
    assert result["reported"] == []
    (other,) = result["not_comparable"]
    assert other["metrics"]["abs_rel"] == 0.021
    assert other["differences"] == [*differences, "an unknown number of images"]


def test_numbers_reported_on_the_same_images_are_listed_next_to_ours():
    score = PROTOCOLS["nyu"].score(np.ones((480, 640)), np.ones((480, 640)))
    rows = [Row(index, str(index), scores={"nyu": score}) for index in range(654)]
    result = results.of(rows, PROTOCOLS["nyu"], {"dataset": "nyu"}, {})
    assert [each["metrics"]["abs_rel"] for each in result["reported"]] == [0.085]
    assert results.of(rows[1:], PROTOCOLS["nyu"], {"dataset": "nyu"}, {})["reported"] == []


def test_nothing_to_score_is_an_error(samples, tmp_path):
    for nothing in ([], samples[1:2]):
        with pytest.raises(ValueError, match="nothing to score"):
            score(red, nothing, RELEASE, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_config_is_checked_and_builds_its_protocol():
    config = EvaluationConfig(protocol="kitti_eigen", crop_reference="full", max_depth=50.0)
    assert config.build() == protocols.get("kitti_eigen", crop_reference="full", max_depth=50.0)
    with pytest.raises(ValueError, match="crop is 'grag'"):
        EvaluationConfig(crop="grag")


def test_the_config_takes_several_protocols_and_averages():
    config = EvaluationConfig(protocol="kitti_eigen, kitti_eigen_50m", crop="eigen")
    assert [each.name for each in config.build_all()] == ["kitti_eigen", "kitti_eigen_50m"]
    assert {each.crop for each in config.build_all()} == {"eigen"}
    assert config.build().name == "kitti_eigen"
    for wrong, message in [
        ({"protocol": "nyu,nyu"}, "a name occurs twice"),
        ({"protocol": "kitti_eigen,nyu", "crop": "garg"}, "protocol nyu: crop is 'garg'"),
        ({"flip_average": "inverse"}, "must be depth or inverse_depth"),
        ({"flip_average": "inverse_depth"}, "needs flip_tta=True"),
    ]:
        with pytest.raises(ValueError, match=message):
            EvaluationConfig(**wrong)


class Predictor:
    """Predicts from the red channel and counts calls; can stop like an interrupted process."""

    def __init__(self, stop_after=math.inf):
        self.count = 0
        self._stop_after = stop_after

    def __call__(self, image):
        if self.count >= self._stop_after:
            raise KeyboardInterrupt
        self.count += 1
        return red(image) * 1.1 + 1


SEVERAL = [
    PROTOCOLS["release"],
    protocols.get("dense", max_depth=50.0),
    protocols.get("drivingstereo", alignment="median_low"),
]


def contents(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_text() for path in files}


def test_several_protocols_share_one_prediction_of_each_image(samples, tmp_path):
    predict = Predictor()
    found = score_each(predict, samples, SEVERAL, tmp_path / "all", progress=False)
    assert predict.count == len(samples)
    for protocol in SEVERAL:
        alone = score(Predictor(), samples, protocol, tmp_path / "one", progress=False)
        assert found[protocol.name] == alone
        assert contents(tmp_path / "one") == contents(tmp_path / "all" / protocol.name)
    assert set(contents(tmp_path / "all")) == {
        f"{protocol.name}/{name}"
        for protocol in SEVERAL
        for name in ("metrics.json", "per_image.csv")
    }


def test_protocols_with_different_inputs_predict_separately(tmp_path):
    image = np.random.default_rng(0).integers(1, 80, (375, 1242, 3), np.uint8)
    sample = {"image": image, "depth": red(image), "id": "a"}
    sizes = []

    def predict(image):
        sizes.append(image.shape[:2])
        return red(image)

    names = "kitti_eigen,kitti_eigen_50m,kitti_official,nuscenes"
    found = score_each(predict, [sample], protocols.get_all(names), tmp_path, progress=False)
    assert sizes == [(352, 1216), (375, 1242), (320, 576)]
    assert found["kitti_eigen"]["metrics"]["abs_rel"] == 0
    assert found["nuscenes"]["metrics"]["abs_rel"] > 0


@pytest.mark.parametrize("protocols", [SEVERAL, SEVERAL[:1]])
def test_an_interrupted_evaluation_is_resumed(samples, tmp_path, protocols):
    samples = samples * 3
    expected = score_each(Predictor(), samples, protocols, tmp_path / "whole", progress=False)
    settings = {"fingerprint": "weights", "progress": False}
    baseline = np.full((3, 4), 20, np.float32)
    with pytest.raises(KeyboardInterrupt):
        score_each(Predictor(4), samples, protocols, tmp_path / "parts", **settings)
    assert all("partial" in name for name in contents(tmp_path / "parts"))
    for changed in ({"fingerprint": "others"}, {"options": {"a": 1}}, {"baseline_depth": baseline}):
        other = Predictor()  # A different evaluation reuses nothing.
        score_each(other, samples, protocols, tmp_path / "parts", **settings | changed)
        assert other.count == len(samples)
    rest = Predictor()
    found = score_each(rest, samples, protocols, tmp_path / "parts", **settings)
    assert rest.count == len(samples) - 4
    assert found == expected
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_ctrl_c_says_how_to_resume_if_rows_are_kept(samples, tmp_path):
    with pytest.raises(KeyboardInterrupt) as interrupt:
        score(Predictor(2), samples, RELEASE, tmp_path, fingerprint="f", progress=False)
    assert "2 images" in str(interrupt.value) and str(tmp_path) in str(interrupt.value)
    assert "same command" in str(interrupt.value)
    for stop_after, options in ((2, {}), (0, {"fingerprint": "f"})):
        with pytest.raises(KeyboardInterrupt) as interrupt:
            score(Predictor(stop_after), samples, RELEASE, tmp_path / "new", **options)
        assert not str(interrupt.value) and not (tmp_path / "new").exists()


def test_ctrl_c_before_the_first_image_counts_the_rows_kept_earlier(samples, tmp_path, monkeypatch):
    settings = {"fingerprint": "f", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        score(Predictor(2), samples, RELEASE, tmp_path, **settings)
    bar = lambda *_, **__: Predictor(0)(None)  # noqa: E731
    monkeypatch.setattr(dataset_lib, "tqdm", bar)
    with pytest.raises(KeyboardInterrupt, match=r"2 images.*same command"):
        score(Predictor(), samples, RELEASE, tmp_path, **settings)


def test_two_processes_in_one_directory(samples, tmp_path):
    """The second one stops with an error and leaves the first one's rows and results alone."""
    rivals = []

    def predict(image):
        if not rivals:
            rivals.append(1)
            for fingerprint in ("f", "g"):
                with pytest.raises(FileError, match=re.escape(str(tmp_path))):
                    score(red, samples, RELEASE, tmp_path, fingerprint=fingerprint, progress=False)
            shard = {"fingerprint": "f", "shard": (1, 2), "progress": False}
            assert score(red, samples, RELEASE, tmp_path, **shard) is None
        return red(image)

    result = score(predict, samples, RELEASE, tmp_path, fingerprint="f", progress=False)
    assert rivals and result["num_images"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "per_image.csv"}


@pytest.mark.parametrize(
    "damage",
    [
        {"index": 3},
        {"index": -1},
        {"index": 1.0},
        {"index": "0"},
        {"id": None},
        {"scores": {}},
        {"scores": []},
        {"scores": {"release": {"num_valid": 5}}},
        {"error": "cannot be read"},
    ],
)
def test_an_invalid_row_is_computed_again(samples, tmp_path, damage):
    for options in ({"stop": 3}, {}):
        predict = Predictor(2 if options else math.inf)
        with contextlib.suppress(KeyboardInterrupt):
            score(predict, samples, RELEASE, tmp_path, fingerprint="f", progress=False)
        if options:
            (journal,) = tmp_path.iterdir()
            first, second = map(json.loads, journal.read_text().splitlines())
            lines = json.dumps(second | damage), "[" * 100_000
            journal.write_text("\n".join([json.dumps(first), *lines, ""]))
    assert predict.count == 2  # of three, as the first row is intact
    untouched = score(Predictor(), samples, RELEASE, tmp_path / "again", progress=False)
    assert contents(tmp_path / "again") == {
        name: text for name, text in contents(tmp_path).items() if "/" not in name
    }
    assert untouched["num_images"] == 2


def test_a_row_that_cannot_be_written_names_file_and_cause(samples, tmp_path, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "open", lambda *_: Full(), raising=False)
    with pytest.raises(FileError, match=r"per_image\.partial.* cannot be written: No space"):
        score(red, samples, RELEASE, tmp_path, fingerprint="f", progress=False)


def test_leftovers_of_a_killed_process_are_removed(samples, tmp_path):
    leftovers = [tmp_path / name for name in ("metrics.json", "release/per_image.csv")]
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        with pytest.raises(KeyboardInterrupt):
            atomic.write(path, interrupted)
        (part,) = (Path(name) for name in interrupted.seen if Path(name).parent == path.parent)
        machine = part.name.rsplit(".", 2)[1].split("-")[0]
        part.with_name(f".x.{machine}-{2**22 + 1}.part").touch()  # no process has this id
    score_each(red, samples, SEVERAL, tmp_path, progress=False)
    assert not list(tmp_path.rglob(".*"))


def interrupted(file):
    interrupted.seen.append(file.name)
    raise KeyboardInterrupt


interrupted.seen = []


def test_batches_give_the_same_rows(samples, tmp_path):
    counts = []

    def predict_fn(images):
        counts.append(len(images))
        return [red(image) for image in images]

    samples = [*samples, {"id": "broken", "error": "truncated"}, *samples]
    for size in (1, 2, 7, 100):
        score_dataset(
            predict_fn, samples, SEVERAL, tmp_path / str(size), batch_size=size, progress=False
        )
    assert counts == [1] * 6 + [2, 1, 2, 1] + [6] + [6]
    first, *others = (contents(tmp_path / str(size)) for size in (1, 2, 7, 100))
    assert others == [first] * 3


def test_shards_together_equal_the_whole(samples, tmp_path):
    samples = samples * 3
    settings = {"baseline_depth": np.full((3, 4), 20, np.float32), "progress": False}
    expected = score_each(Predictor(), samples, SEVERAL, tmp_path / "whole", **settings)
    settings |= {"fingerprint": "weights"}
    counts = []
    for index in (2, 0, 1):
        predict = Predictor(2 if index == 1 else math.inf)  # one of them dies
        try:
            shard = (index, 4)
            assert (
                score_each(predict, samples, SEVERAL, tmp_path / "o", shard=shard, **settings)
                is None
            )
        except KeyboardInterrupt:
            pass
        counts.append(predict.count)
    assert counts == [2, 3, 2]
    rest = Predictor()
    found = score_each(rest, iter(samples), SEVERAL, tmp_path / "o", **settings)
    assert found == expected
    assert rest.count == 9  # a stream has no length, so it is another evaluation
    (tmp_path / "o/per_image.csv").unlink(missing_ok=True)
    rest = Predictor()
    assert score_each(rest, samples, SEVERAL, tmp_path / "o", **settings) == expected
    assert rest.count == len(samples) - sum(counts)
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="needs a fingerprint"):
        score_each(rest, samples, SEVERAL, tmp_path / "o", shard=(0, 2))


def test_several_processes_write_what_one_writes(samples, tmp_path):
    samples = [*samples, {"id": "broken", "error": "truncated"}, *samples]
    settings = {"baseline_depth": np.full((3, 4), 20, np.float32), "progress": False}
    expected = score_each(Predictor(), samples, SEVERAL, tmp_path / "whole", **settings)
    predictors = [Predictor() for _ in range(3)]

    def share(processes):
        predict = predictors[processes.index]
        return score_each(
            predict, samples, SEVERAL, tmp_path / "o", processes=processes, **settings
        )

    assert together(share) == [expected] * 3
    assert contents(tmp_path / "o") == contents(tmp_path / "whole")
    assert [predict.count for predict in predictors] == [2, 2, 2]  # the first got the broken one


def test_an_image_that_one_process_cannot_score_stops_all(samples, tmp_path):
    samples[1]["depth"] = samples[1]["depth"][:2]

    def share(processes):
        score(red, samples, RELEASE, tmp_path / "o", processes=processes, progress=False)

    first, own, last = together(share)
    assert "frame/1" in str(own)
    assert str(first) == str(last) == f"process 1: {own}"
    assert type(first) is type(own) is type(last) is DataError
    assert not (tmp_path / "o").exists()
    with pytest.raises(ValueError, match="use a shard"):
        two = Processes(0, 2, lambda message: [message] * 2)
        score(red, samples, RELEASE, tmp_path, fingerprint="f", processes=two)


def test_shards_as_text():
    assert parse_shard("3/4") == (3, 4)
    for wrong in ("4/4", "1", "a/4", "-1/4", "1/", "1/2/3"):
        with pytest.raises(ValueError, match="must be I/N"):
            parse_shard(wrong)


def test_unreadable_images_are_counted_and_named(samples, tmp_path):
    samples.insert(1, {"id": "broken", "error": "broken.png cannot be read"})
    result = score(red, samples, RELEASE, tmp_path, progress=False)
    counts = [result[name] for name in ("num_images", "num_skipped", "num_unreadable")]
    assert counts == [2, 1, 1]
    assert result["unreadable"] == [{"id": "broken", "error": "broken.png cannot be read"}]
    table = rows(tmp_path)
    assert [row["id"] for row in table] == ["frame/0", "broken", "frame/1", "frame/2"]
    assert table[1]["error"] == "broken.png cannot be read" and table[1]["num_valid"] == ""
    with pytest.raises(ValueError, match=r"nothing to score.* \(1 could not be read\)"):
        score(red, samples[1:2], RELEASE, tmp_path / "none", progress=False)


def test_a_repaired_image_is_scored_on_the_next_run(samples, tmp_path):
    settings = {"fingerprint": "weights", "progress": False}
    broken = [{"id": "frame/0", "error": "truncated"}, *samples[1:]]
    with pytest.raises(KeyboardInterrupt):
        score(Predictor(1), broken, RELEASE, tmp_path, **settings)
    predict = Predictor()
    result = score(predict, samples, RELEASE, tmp_path, **settings)
    assert (result["num_images"], result["num_unreadable"], predict.count) == (2, 0, 2)


def conditioned(samples, conditions):
    pairs = zip([samples[0], samples[2]] * 2, conditions, strict=True)
    return [sample | {"condition": condition} for sample, condition in pairs]


def test_conditions_are_averaged_by_the_protocols_groups(samples, tmp_path):
    def predict(image):
        return np.full((320, 576), 20.0)

    night = conditioned(samples, ["day-clear", "night-clear", "night-rain", "day-rain"])
    result = score(predict, night, PROTOCOLS["nuscenes"], tmp_path, progress=False)
    counts = {name: group["num_images"] for name, group in result["conditions"].items()}
    assert counts == {"day-clear": 1, "night": 2, "day-rain": 1}
    table = rows(tmp_path)
    assert [row["condition"] for row in table] == [each["condition"] for each in night]
    values = [float(row["abs_rel"]) for row in table]
    groups = {name: group["metrics"]["abs_rel"] for name, group in result["conditions"].items()}
    assert groups["night"] == pytest.approx((values[1] + values[2]) / 2, rel=1e-12)
    assert groups["day-rain"] == values[3]


def test_without_groups_every_condition_is_averaged_separately(samples, tmp_path):
    weather = conditioned(samples, ["foggy", "rainy", "foggy", "foggy"])
    baseline = np.full((6, 8), 20, np.float32)
    protocol = PROTOCOLS["drivingstereo"]
    result = score(red, weather, protocol, tmp_path, baseline_depth=baseline, progress=False)
    assert {name: group["num_images"] for name, group in result["conditions"].items()} == {
        "foggy": 3,
        "rainy": 1,
    }
    assert result["conditions"]["rainy"]["baseline"]["abs_rel"] > 0
    one = score(red, samples, protocol, tmp_path, progress=False)
    assert one["conditions"] == {}


def test_classes_are_means_over_the_images_that_have_them(samples, tmp_path):
    protocol = protocols.get("cleargrasp", alignment="none", max_depth=80.0)
    for index, sample in enumerate(samples):
        sample["tom_mask"] = np.zeros((6, 8), bool)
        sample["tom_mask"][: 3 * (index == 2)] = True

    def predict(image):
        return red(image) + 2

    baseline = np.full((6, 8), 20, np.float32)
    settings = {"baseline_depth": baseline, "progress": False}
    result = score(predict, samples, protocol, tmp_path, **settings)
    classes = result["classes"]
    assert list(classes) == ["ToM", "Other"]
    assert [classes[name]["num_images"] for name in classes] == [1, 2]
    assert classes["ToM"]["metrics"]["mae_mm"] == pytest.approx(2000, rel=1e-6)
    assert classes["ToM"]["baseline"]["mae_mm"] > 0
    table = rows(tmp_path)
    assert [row["ToM/mae_mm"] for row in table[:2]] == ["", ""] and float(table[2]["ToM/mae_mm"])


def test_other_results_are_listed_next_to_ours(samples, tmp_path):
    control = score(red, samples, RELEASE, tmp_path / "control", progress=False)
    compare = {"control": tmp_path / "control"}
    result = score(
        Predictor(), samples, RELEASE, tmp_path / "ours", compare=compare, progress=False
    )
    assert result["comparisons"]["control"]["metrics"] == control["metrics"]
    assert result == json.loads((tmp_path / "ours/metrics.json").read_text())
    with pytest.raises(FileNotFoundError):
        compare = {"control": tmp_path / "absent"}
        score(Predictor(0), samples, RELEASE, tmp_path / "new", compare=compare)
    assert not (tmp_path / "new").exists()
