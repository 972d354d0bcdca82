import json

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.adverse import config, manifest, runner, summary
from diffdepth_jax.data import pipeline, transforms
from diffdepth_jax.data.sources import adverse
from diffdepth_jax.errors import ConfigError, DataError, FileError
from diffdepth_jax.typing import InputSpec


def run(mapping, workdir, **options):
    return runner.run(config.from_mapping(mapping), workdir, progress=False, **options)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "manifest.jsonl").read_text().splitlines()]


def files(workdir):
    """Everything but journals and locks, by name."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and "journal" not in path.parts
    }


def test_every_image_has_a_label_and_a_manifest_line(mapping, checkpoint, tmp_path):
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    result = run(mapping(teacher=teacher, labels="teacher", variants=2), tmp_path / "out")
    rows = lines(tmp_path / "out")
    assert [(row["id"], row["condition"], row["variant"]) for row in rows] == [
        (f"f{number}", condition, variant)
        for number in range(5)
        for condition in ("night", "fog")
        for variant in (0, 1)
    ]
    assert result.complete and list(result.records) == manifest.read(tmp_path / "out")
    for row in rows:
        assert row["status"] == "ok" and row["reason"] is None
        assert row["backend"] == f"stand_in-{row['condition']}"
        image = np.asarray(Image.open(tmp_path / "out" / row["image"]))
        clean = np.asarray(Image.open(tmp_path / "out" / row["clean"]))
        source = Image.open(tmp_path / "frames/image" / f"{row['id']}.png")
        np.testing.assert_array_equal(clean, np.asarray(source))
        assert image.shape == clean.shape
        label = np.load(tmp_path / "out" / row["label"])
        assert label.dtype == np.float32
        np.testing.assert_array_equal(label, 200 / (1 + clean.mean(-1, dtype=np.float32)))
        assert 0 < row["structure"]["abs_rel"] < 1
        assert 0 <= row["structure"]["edge_agreement"] <= 1
        assert row["prompt"] and row["negative_prompt"] and 0 <= row["seed"] < 2**63
    assert len({row["seed"] for row in rows}) == len(rows)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("run.json", "journal", "clean", "labels", "control", "images"),
        *("manifest.jsonl", "summary.csv", "gallery.html", "contact_sheet.png"),
    }


def test_control_is_inverse_depth_of_the_teacher_or_the_steering_network(
    mapping, checkpoint, tmp_path
):
    teacher = {"checkpoint": checkpoint("metric.pt"), "batch_size": 2}
    run(mapping(teacher=teacher, labels="teacher"), tmp_path / "one")
    steering = {"checkpoint": checkpoint("relative.pt"), "batch_size": 2}
    run(mapping(teacher=teacher, labels="teacher", steering=steering), tmp_path / "two")
    run(mapping(), tmp_path / "source")
    for number in range(5):
        image = np.asarray(Image.open(tmp_path / f"frames/image/f{number}.png"))
        disparity = (1 + image.mean(-1)) / 200
        for name in ("one", "two"):
            control = np.load(tmp_path / name / f"control/f{number}.npy")
            assert control.dtype == np.float32
            np.testing.assert_allclose(control, disparity, rtol=1e-5)
        depth = np.load(tmp_path / f"frames/depth/f{number}.npy")
        np.testing.assert_array_equal(np.load(tmp_path / f"source/labels/f{number}.npy"), depth)
        control = np.load(tmp_path / f"source/control/f{number}.npy")
        np.testing.assert_allclose(control, 1 / depth, rtol=1e-6)


def test_sparse_labels_are_kept_and_images_are_made_from_the_teachers_depth(
    mapping, checkpoint, tmp_path
):
    for path in (tmp_path / "frames/depth").iterdir():
        depth = np.load(path)
        depth[:, 1:] = 0
        np.save(path, depth)
    result = run(mapping(), tmp_path / "without")
    assert {record.status for record in result.records} == {"failed"}
    assert "set teacher.checkpoint" in result.records[0].reason
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    result = run(mapping(teacher=teacher), tmp_path / "out")
    assert {record.status for record in result.records} == {"ok"}
    assert result.records[0].structure["edge_agreement"] is None
    assert (np.load(tmp_path / "out/labels/f0.npy")[:, 1:] == 0).all()
    image = np.asarray(Image.open(tmp_path / "frames/image/f0.png"))
    dense = np.load(tmp_path / "out/depth/f0.npy")
    np.testing.assert_array_equal(dense, 200 / (1 + image.mean(-1, dtype=np.float32)))


def test_batches_depend_only_on_the_frames(mapping, backend, tmp_path):
    wanted = [
        ["f0/night/0", "f0/fog/0"],
        ["f1/night/0", "f1/fog/0"],
        ["f2/night/0", "f2/fog/0"],  # a different size
        ["f3/night/0", "f3/fog/0"],
        ["f4/night/0", "f4/fog/0"],
    ]
    run(mapping(), tmp_path / "one")
    assert wanted == backend.MADE
    backend.MADE.clear()
    three = {"name": "stand_in", "batch_size": 3}
    run(mapping(backend=three), tmp_path / "three")
    assert backend.MADE == [
        ["f0/night/0", "f0/fog/0", "f1/night/0"],
        ["f1/fog/0"],
        ["f2/night/0", "f2/fog/0"],
        ["f3/night/0", "f3/fog/0", "f4/night/0"],
        ["f4/fog/0"],
    ]
    backend.MADE.clear()
    for index in (0, 1):
        run(mapping(backend=three), tmp_path / "shards", shard=(index, 2))
    assert backend.MADE == [
        ["f0/night/0", "f0/fog/0", "f1/night/0"],
        ["f1/fog/0"],
        ["f2/night/0", "f2/fog/0"],
        ["f3/night/0", "f3/fog/0", "f4/night/0"],
        ["f4/fog/0"],
    ]
    run(mapping(backend=three), tmp_path / "shards", merge=True)
    merged, whole = files(tmp_path / "shards"), files(tmp_path / "three")
    assert merged == whole


def test_a_lost_image_is_regenerated_within_its_batch(mapping, backend, tmp_path):
    run(mapping(), tmp_path / "out")
    before = files(tmp_path / "out")
    (tmp_path / "out/images/fog/f3_0.png").unlink()
    backend.MADE.clear()
    run(mapping(), tmp_path / "out")
    assert backend.MADE == [["f3/night/0", "f3/fog/0"]]
    assert files(tmp_path / "out") == before


def test_a_finished_workdir_is_left_alone(mapping, backend, checkpoint, predicted, tmp_path):
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    first = run(mapping(teacher=teacher), tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    backend.OPENED.clear()
    predicted.clear()
    again = run(mapping(teacher=teacher), tmp_path / "out")
    assert list(again.records) == list(first.records)
    assert backend.OPENED == [] and predicted == []
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}


def test_limits_can_be_set_later(mapping, backend, checkpoint, tmp_path):
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    first = run(mapping(teacher=teacher), tmp_path / "out")
    errors = sorted(
        record.structure["abs_rel"] for record in first.records if record.condition == "night"
    )
    backend.OPENED.clear()
    limits = {"max_abs_rel": (errors[2] + errors[3]) / 2}
    run(mapping(teacher=teacher, structure=limits), tmp_path / "out")
    assert backend.OPENED == []
    rows = [row for row in lines(tmp_path / "out") if row["condition"] == "night"]
    assert (
        sorted(row["structure"]["abs_rel"] for row in rows if row["status"] == "ok") == (errors[:3])
    )
    rejected = [row for row in rows if row["status"] == "rejected"]
    assert len(rejected) == 2 and all("abs_rel" in row["reason"] for row in rejected)
    worst = run(mapping(teacher=teacher, structure={"worst_share": 0.21}), tmp_path / "out")
    night = [record for record in worst.records if record.condition == "night"]
    assert [r.structure["abs_rel"] for r in night if r.status == "rejected"] == errors[-1:]


def test_images_are_scored_only_on_request(mapping, backend, checkpoint, predicted, tmp_path):
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    trusted = mapping(teacher=teacher, structure={"score": False})
    first = run(trusted, tmp_path / "out")
    number = sum(predicted)
    assert number == 5  # the frames, for their labels
    assert {(record.status, record.structure) for record in first.records} == {("ok", None)}
    backend.OPENED.clear()
    run(trusted, tmp_path / "out")
    assert backend.OPENED == [] and sum(predicted) == number
    backend.MADE.clear()
    later = run(mapping(teacher=teacher), tmp_path / "out")
    assert backend.MADE == [] and all(record.structure for record in later.records)
    with pytest.raises(ConfigError, match="set score to True"):
        run(mapping(teacher=teacher, structure={"score": False, "worst_share": 0.1}), tmp_path)


def test_a_share_to_reject_without_a_teacher_is_warned_of(mapping, tmp_path):
    with pytest.warns(UserWarning, match=r"worst_share is 0\.5, .*teacher\.checkpoint"):
        result = run(mapping(structure={"worst_share": 0.5}), tmp_path / "out")
    assert {record.status for record in result.records} == {"ok"}


def test_failed_items_are_recorded_and_retried(mapping, tmp_path):
    failing = {"name": "stand_in", "batch_size": 2, "fails": "f1/"}
    result = run(mapping(backend=failing), tmp_path / "out")
    assert [record.id for record in result.failed] == ["f1", "f1"]
    assert all(record.reason == "told to fail" for record in result.failed)
    assert all(record.image is None and record.label for record in result.failed)
    result = run(mapping(), tmp_path / "out")
    assert result.failed == [] and [row["status"] for row in lines(tmp_path / "out")] == ["ok"] * 10
    run(mapping(), tmp_path / "whole")
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")


def test_black_images_are_rejected_and_stay_rejected(mapping, backend, checkpoint, tmp_path):
    black = {"name": "stand_in", "batch_size": 2, "black": "f1/fog"}
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    for _ in range(2):
        result = run(mapping(backend=black, teacher=teacher), tmp_path / "out")
        rejected = [record for record in result.records if record.status == "rejected"]
        assert [(record.id, record.condition) for record in rejected] == [("f1", "fog")]
        assert "blacked" in rejected[0].reason and rejected[0].structure is None
        assert result.failed == []
    assert len(backend.OPENED) == 1


def test_unreadable_frames_fail_alone_and_are_retried(mapping, frames, tmp_path):
    good = (frames / "image/f3.png").read_bytes()
    (frames / "image/f3.png").write_bytes(good[:200])
    result = run(mapping(), tmp_path / "out")
    assert {record.id for record in result.failed} == {"f3"}
    assert "f3.png" in result.failed[0].reason and result.failed[0].label is None
    (frames / "image/f3.png").write_bytes(good)
    assert run(mapping(), tmp_path / "out").failed == []
    run(mapping(), tmp_path / "whole")
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    (frames / "image/f3.png").write_bytes(good[:200])
    with pytest.raises(DataError, match=r"f3\.png"):
        run(mapping(on_error="raise"), tmp_path / "other")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"conditions": ("night",)}, "conditions"),
        ({"variants": 2}, "variants: 1 -> 2"),
        ({"limit": 3}, "limit: None -> 3"),
        ({"backend": {"name": "stand_in", "batch_size": 2, "strength": 0.6}}, "strength: 0.5"),
        ({"backend": {"name": "stand_in", "batch_size": 1}}, "batch_size: 2 -> 1"),
    ],
)
def test_a_workdir_of_another_config_is_refused(mapping, tmp_path, changes, message):
    run(mapping(), tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"started with a different config.*use another workdir"
    ) as error:
        run(mapping(**changes), tmp_path / "out")
    assert message in str(error.value)
    assert files(tmp_path / "out") == before


def test_a_workdir_of_other_weights_or_frames_is_refused(mapping, checkpoint, frames, tmp_path):
    failing = {"name": "stand_in", "batch_size": 2, "fails": "f1/"}
    one = {"checkpoint": checkpoint("a.pt", "one"), "batch_size": 2}
    run(mapping(teacher=one, backend=failing), tmp_path / "out")
    moved = {"checkpoint": checkpoint("b.pt", "one"), "batch_size": 1}
    run(mapping(teacher=moved, backend=failing), tmp_path / "out")
    other = {"checkpoint": checkpoint("b.pt", "two"), "batch_size": 2}
    with pytest.raises(ConfigError, match="teacher"):
        run(mapping(teacher=other, backend=failing), tmp_path / "out")
    for part in ("image/f9.png", "depth/f9.npy"):
        (frames / part).write_bytes((frames / part.replace("9", "4")).read_bytes())
    with pytest.raises(ConfigError, match="frames: 5 -> 6"):
        run(mapping(teacher=one), tmp_path / "out")


@pytest.mark.parametrize("part", ["teacher", "steering"])
def test_a_finished_workdir_of_other_weights_is_refused_too(
    mapping, backend, checkpoint, tmp_path, part
):
    def settings(name, weights, **changes):
        teacher = {"teacher": {"checkpoint": checkpoint(), "batch_size": 2}}
        network = {part: {"checkpoint": checkpoint(name, weights), "batch_size": 2}}
        return mapping(**(teacher | network | changes))

    first = run(settings("a.pt", "one"), tmp_path / "out")
    backend.OPENED.clear()
    moved = run(settings("b.pt", "one"), tmp_path / "out")
    assert list(moved.records) == list(first.records) and backend.OPENED == []
    before = files(tmp_path / "out")
    for changes in ({}, {"gallery": {"frames": 2, "width": 40}}):
        for merge in (False, True):
            with pytest.raises(ConfigError, match=f"started with a different config.*{part}"):
                run(settings("c.pt", "two", **changes), tmp_path / "out", merge=merge)
    assert files(tmp_path / "out") == before
    # A workdir from before the paths were recorded.
    run_file = tmp_path / "out/run.json"
    contents = json.loads(run_file.read_text())
    assert contents.pop("checkpoints")
    run_file.write_text(json.dumps(contents))
    assert list(run(settings("b.pt", "one"), tmp_path / "out").records) == list(first.records)


def test_config_errors_come_before_the_first_image(mapping, backend, tmp_path):
    for changes, message in [
        ({"conditions": ()}, "conditions is empty"),
        ({"conditions": ("nigth",)}, "did you mean 'night'"),
        ({"conditions": ("night", "night")}, "night twice"),
        ({"conditions": ("scene",)}, "scene"),
        ({"labels": "teacher"}, "teacher.checkpoint is missing"),
        ({"structure": {"max_abs_rel": 0.1}}, "teacher.checkpoint is missing"),
        ({"structure": {"min_edge_agreement": 0.0}}, "teacher.checkpoint is missing"),
        ({"variants": 0}, "variants is 0"),
        ({"scenes": {"count": 2}}, "exactly one of source and scenes"),
        ({"prompts": {"scene": "moon"}}, "prompts.scene is 'moon'"),
        ({"conditions": ("glass",)}, "{objects}"),
        ({"backend": {"name": "stand_in", "refuses": "it says so"}}, "it says so"),
        ({"backend": {"name": "stand"}}, "did you mean 'stand_in'"),
        ({"backend": {"name": "stand_in", "strenght": 1}}, "did you mean 'strength'"),
    ]:
        with pytest.raises(ConfigError) as error:
            run(mapping(**changes), tmp_path / "out")
        assert message in str(error.value)
    assert backend.MADE == []


def test_a_backend_that_lacks_a_condition_is_an_error(mapping, backend, monkeypatch):
    monkeypatch.setattr(backend, "CONDITIONS", ("fog", "snow"))
    with pytest.raises(ConfigError, match=r"'night'.*it supports fog, snow"):
        config.from_mapping(mapping())


def test_a_backend_without_prompts_has_none_in_the_manifest(
    mapping, backend, monkeypatch, tmp_path
):
    monkeypatch.setattr(backend, "USES_PROMPTS", False)
    result = run(mapping(conditions=("drizzle-of-its-own",)), tmp_path / "out")
    assert {(record.prompt, record.negative_prompt) for record in result.records} == {("", "")}


def test_outcomes_of_a_backend_are_checked(mapping, backend, monkeypatch, tmp_path):
    def generate(self, batches):
        for batch in batches:
            for item in batch:
                size = {"f0": (24, 41), "f2": (16, 40)}.get(item.key[:2], (24, 40))
                if "f1" not in item.key:
                    Image.fromarray(np.ones((*size, 3), np.uint8)).save(item.output)
                if "f3" not in item.key:
                    yield backend.Outcome(item.key)

    monkeypatch.setattr(backend.Session, "generate", generate)
    result = run(mapping(), tmp_path / "out")
    reasons = {record.id: record.reason for record in result.records}
    assert "size (24, 41) instead of (24, 40)" in reasons["f0"]
    assert "f1_0.png" in reasons["f1"] and "no image" in reasons["f1"]
    assert reasons["f2"] is None and "without an outcome" in reasons["f3"]


def test_scenes_are_made_labelled_and_changed(mapping, backend, checkpoint, tmp_path):
    scenes = {"count": 3, "size": (24, 32)}
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    changes = {"scenes": scenes, "source": None, "labels": "teacher", "teacher": teacher}
    settings = mapping(**changes, conditions=("glass", "mirror"))
    result = run(settings, tmp_path / "out")
    assert backend.MADE[:2] == [
        ["scene_000000/scene/0", "scene_000001/scene/0"],
        ["scene_000002/scene/0"],
    ]
    assert [record.id for record in result.records][::2] == [f"scene_{n:06d}" for n in range(3)]
    for record in result.records:
        scene = Image.open(tmp_path / f"out/images/scene/{record.id}_0.png")
        clean = Image.open(tmp_path / "out" / record.clean)
        assert clean.size == (32, 24)
        np.testing.assert_array_equal(np.asarray(clean), np.asarray(scene))
    backend.OPENED.clear()
    run(settings, tmp_path / "out")
    assert backend.OPENED == []

    black = {"name": "stand_in", "batch_size": 2, "black": "01/scene", "fails": "02/scene"}
    for _ in range(2):
        result = run(settings | {"backend": black}, tmp_path / "black")
        statuses = [record.status for record in result.records]
        assert statuses == ["ok", "ok", "rejected", "rejected", "failed", "failed"]
        assert "clean image" in result.records[2].reason
        assert "could not be generated: told to fail" in result.records[4].reason


def test_depth_is_cached_by_network_and_image(mapping, checkpoint, predicted, tmp_path):
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    settings = mapping(teacher=teacher, labels="teacher", cache=str(tmp_path / "cache"))
    run(settings, tmp_path / "one")
    num_labels = 5
    assert sum(predicted) == num_labels + 10
    predicted.clear()
    run(settings | {"seed": 1}, tmp_path / "two")
    assert sum(predicted) == 10
    for path in (tmp_path / "cache").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:50])
    predicted.clear()
    run(settings | {"seed": 2}, tmp_path / "three")
    assert sum(predicted) == num_labels + 10
    for number in range(5):
        one, three = (tmp_path / name / f"labels/f{number}.npy" for name in ("one", "three"))
        assert one.read_bytes() == three.read_bytes()


def test_merge_finds_gaps_overlaps_and_other_configs(mapping, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="contains no run"):
        run(mapping(), out, merge=True)
    run(mapping(), out, shard=(0, 2))
    with pytest.raises(DataError, match="2 of 5 frames have not been prepared"):
        run(mapping(), out, merge=True)
    assert not (out / "manifest.jsonl").exists()
    run(mapping(), out, shard=(1, 2))
    run(mapping(), out, merge=True)
    run(mapping(), tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")

    run(mapping(), tmp_path / "thirds", shard=(1, 3))
    journals = [path / "journal" for path in (out, tmp_path / "thirds")]
    third = journals[1] / "00001of00003.jsonl"
    (journals[0] / third.name).write_bytes(third.read_bytes())
    with pytest.raises(DataError, match=r"4 images were made by several.*f2.*1/2, 1/3"):
        run(mapping(), out, merge=True)
    (journals[0] / third.name).unlink()

    run(mapping(seed=1), tmp_path / "other", shard=(1, 2))
    half = tmp_path / "other/journal/00001of00002.jsonl"
    (journals[0] / half.name).write_bytes(half.read_bytes())
    with pytest.raises(DataError, match=r"shards 1/2 belong to a different config"):
        run(mapping(), out, merge=True)


def test_merge_refuses_images_that_are_not_scored(
    mapping, backend, checkpoint, monkeypatch, tmp_path
):
    out, teacher = tmp_path / "out", {"checkpoint": checkpoint(), "batch_size": 2}
    trusted = mapping(teacher=teacher, structure={"score": False})
    for index in (0, 1):
        run(trusted, out, shard=(index, 2))
    with pytest.raises(DataError, match=r"10 of 10 images have not been scored.*f0/night/0"):
        run(mapping(teacher=teacher), out, merge=True)
    assert not (out / "manifest.jsonl").exists()
    run(trusted, out, merge=True)
    # As merged by a version that did not check this.
    with monkeypatch.context() as patch:
        patch.setattr(runner._Run, "_is_unscored", lambda self, key: False)
        old = run(mapping(teacher=teacher), out, merge=True)
    assert not any(record.structure for record in old.records)
    backend.MADE.clear()
    scored = run(mapping(teacher=teacher), out)
    assert backend.MADE == [] and all(record.structure for record in scored.records)
    assert run(mapping(teacher=teacher), out, merge=True).records == scored.records


def test_a_plain_run_continues_from_shards(mapping, backend, tmp_path):
    run(mapping(), tmp_path / "out", shard=(0, 2))
    backend.MADE.clear()
    result = run(mapping(), tmp_path / "out")
    assert result.complete and backend.MADE == [
        ["f2/night/0", "f2/fog/0"],
        ["f3/night/0", "f3/fog/0"],
    ]
    run(mapping(), tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_two_runs_in_one_workdir_are_kept_apart(mapping, backend, monkeypatch, tmp_path):
    def generate(self, batches):
        run(mapping(), tmp_path / "out")
        yield

    monkeypatch.setattr(backend.Session, "generate", generate)
    with pytest.raises(FileError, match="in use for generation"):
        run(mapping(), tmp_path / "out")


def test_training_on_a_workdir(mapping, frames, tmp_path):
    run(mapping(), tmp_path / "out")
    still = {"flip": 0.0, "rotation": 0.0, "jitter": 0.0, "scale": (1.0, 1.0)}
    crop = transforms.Augmentation(crop=(16, 40), **still)
    source = adverse.Config(root=str(tmp_path / "out"))
    data = pipeline.DataConfig(source=source, augmentation=crop)
    spec = InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    batch = next(pipeline.train_iterator(data, 10, 0, spec))
    assert sorted(batch["id"]) == sorted(
        f"f{number}_{condition}_0" for number in range(5) for condition in ("night", "fog")
    )
    assert batch["image"].shape == (10, 16, 40, 3) and batch["valid_mask"].all()
    for name, depth in zip(batch["id"], batch["depth"], strict=True):
        label = np.load(frames / f"depth/{name[:2]}.npy")
        assert np.isin(depth, label).all()


@pytest.mark.parametrize(
    "names, message",
    [
        (["../a"], r"'\.\./a'.*cannot be used as a file name"),
        ([".a"], "cannot be used as a file name"),
        (["a", "b", "a"], "frames 0 and 2 of the source have the same id 'a'"),
    ],
)
def test_ids_that_cannot_be_file_names_are_refused(mapping, monkeypatch, tmp_path, names, message):
    class Source:
        def __len__(self):
            return len(names)

        def __getitem__(self, index):
            image = np.full((8, 8, 3), 90, np.uint8)
            depth = np.ones((8, 8), np.float32)
            return {"id": names[index], "image": image, "depth": depth, "intrinsics": np.eye(3)}

    monkeypatch.setattr(pipeline, "build_source", lambda *_: Source())
    with pytest.raises(DataError, match=message):
        run(mapping(), tmp_path / "out")


def test_a_full_disk_ends_the_run_and_nothing_is_lost(mapping, backend, monkeypatch, tmp_path):
    written = []
    write = backend.atomic.write

    def full(path, *arguments):
        if len(written) == 3:
            raise FileError(f"{path} cannot be written: No space left on device")
        written.append(path)
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "atomic", type("Atomic", (), {"write": staticmethod(full)}))
        with pytest.raises(FileError, match="No space left"):
            run(mapping(), tmp_path / "out")
    backend.MADE.clear()
    run(mapping(), tmp_path / "out")
    assert backend.MADE[0] == ["f1/night/0", "f1/fog/0"]
    run(mapping(), tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_the_table_counts_by_condition(mapping, checkpoint, tmp_path):
    failing = {"name": "stand_in", "batch_size": 2, "fails": "f1/fog"}
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    result = run(mapping(backend=failing, teacher=teacher), tmp_path / "out")
    night, fog, both = summary.rows(result.records)
    assert (night["ok"], fog["ok"], fog["failed"], both["images"]) == ("5", "4", "1", "10")
    text = (tmp_path / "out/summary.csv").read_text().splitlines()
    assert text[0].startswith("condition,backend,images,ok,failed,rejected") and len(text) == 4
    assert summary.table(result.records).splitlines()[1].split()[:3] == [
        "night",
        "stand_in-night",
        "5",
    ]


def test_a_shard_without_frames_has_an_empty_table(mapping, tmp_path):
    result = run(mapping(limit=2), tmp_path / "out", shard=(7, 8))
    assert not result.records and summary.table(result.records) == "no images"
