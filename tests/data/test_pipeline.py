import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from diffdepth_jax import registry
from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.data.pipeline import (
    DataConfig,
    TrainIterator,
    build_source,
    evaluation_samples,
    readable,
    train_iterator,
)
from diffdepth_jax.data.sources import adverse, kitti, mixture, nyu
from diffdepth_jax.data.transforms import Augmentation
from diffdepth_jax.errors import ConfigError, DataError
from diffdepth_jax.typing import InputSpec

DRIVE = "2011_09_26_drive_0002_sync"
SPEC = InputSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
STILL = Augmentation(crop=(24, 60), flip=0.0, rotation=0.0, jitter=0.0, scale=(1.0, 1.0))
NUM_FRAMES = 5
STREAM = [
    ("kitti", (20, 40), "a06601c45dd72391"),
    ("nyu", (228, 304), "d3abfb5c5e64346e"),
]  # with the pinned versions


@pytest.fixture
def root(write_kitti: Callable[..., Path]) -> str:
    return str(write_kitti([(DRIVE, "image_02", number) for number in range(NUM_FRAMES)]))


def config(root: str, **options: object) -> DataConfig:
    defaults = dict(source=kitti.Config(root=root), augmentation=Augmentation(crop=(20, 40)))
    return DataConfig(**(defaults | options))


def take(iterator: TrainIterator, count: int) -> list[dict]:
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def frame_ids() -> list[str]:
    return [f"{DRIVE}_{number:010d}_image_02" for number in range(NUM_FRAMES)]


def break_frame(root: str, number: int) -> Path:
    """Truncates a frame's depth file; returns its path."""
    (path,) = Path(root).glob(f"**/groundtruth/**/{number:010d}.png")
    path.write_bytes(path.read_bytes()[:40])
    return path


def assert_same(batches: list[dict], others: list[dict]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_a_batch(root: str, make_frame: Callable) -> None:
    batch = take(train_iterator(config(root, augmentation=STILL), 3, 0, SPEC), 1)[0]
    assert {
        key: (value.shape, value.dtype.name) for key, value in batch.items() if key != "id"
    } == {
        "image": ((3, 24, 60, 3), "float32"),
        "depth": ((3, 24, 60, 1), "float32"),
        "valid_mask": ((3, 24, 60, 1), "bool"),
        "intrinsics": ((3, 3, 3), "float32"),
    }
    for index, name in enumerate(batch["id"]):
        image, depth = make_frame(int(name.split("_")[-3]), (24, 60))
        expected = (image / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
        np.testing.assert_allclose(batch["image"][index], expected, atol=2e-6)
        np.testing.assert_array_equal(batch["depth"][index, :, :, 0], depth / np.float32(256))
        np.testing.assert_array_equal(batch["valid_mask"][index, :, :, 0], depth > 0)


def test_depth_range_only_masks(root: str) -> None:
    options = dict(augmentation=STILL, depth_range=(10.0, 50.0))
    batch = take(train_iterator(config(root, **options), 5, 0, SPEC), 1)[0]
    depth = batch["depth"]
    np.testing.assert_array_equal(batch["valid_mask"], (depth > 10) & (depth < 50))
    assert depth.max() > 50


def test_epochs_are_complete_and_differ(root: str) -> None:
    batches = take(train_iterator(config(root), 2, 0, SPEC), 10)
    names = np.concatenate([batch["id"] for batch in batches]).reshape(-1, NUM_FRAMES)
    assert all(len(set(epoch)) == NUM_FRAMES for epoch in names)
    assert len({tuple(epoch) for epoch in names}) > 1
    # The same frame looks different each time.
    first = batches[0]["id"][0]
    looks = [b["image"][i] for b in batches for i in range(2) if b["id"][i] == first]
    assert len(looks) == 4
    assert len({look.tobytes() for look in looks}) == 4


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="older versions of Pillow give other pixels"
)
def test_batches_are_those_of_the_first_release(root: str) -> None:
    """Digests of the first release's stream: no new option may change what is drawn without it."""
    for name, crop, expected in STREAM:
        augmentation = Augmentation(name=name, crop=crop)
        digest = hashlib.sha256()
        for batch in take(train_iterator(config(root, augmentation=augmentation), 3, 7, SPEC), 3):
            image = batch["image"] * np.float32(SPEC.std) + np.float32(SPEC.mean)
            digest.update("".join(batch["id"]).encode())
            digest.update(np.rint(image * 255).astype(np.uint8).tobytes())
            digest.update(np.rint(batch["depth"] * 64).astype(np.int32).tobytes())
            digest.update(np.rint(batch["intrinsics"] * 64).astype(np.int32).tobytes())
        assert digest.hexdigest()[:16] == expected, name


def test_the_seed_decides_everything(root: str) -> None:
    one, same, other = (take(train_iterator(config(root), 2, seed, SPEC), 4) for seed in (3, 3, 4))
    assert_same(one, same)
    assert any((a["image"] != b["image"]).any() for a, b in zip(one, other, strict=True))


def test_a_resumed_run_equals_an_uninterrupted_one(root: str) -> None:
    whole = take(train_iterator(config(root), 2, 0, SPEC), 8)
    iterator = train_iterator(config(root), 2, 0, SPEC)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    later = [next(iterator) for _ in range(2)]
    assert_same(later, whole[3:5])
    iterator.set_state(state)  # rewinds the same iterator
    assert_same(take(iterator, 5), whole[3:])
    fresh = train_iterator(config(root), 2, 0, SPEC)
    fresh.set_state(state)
    assert isinstance(state, bytes) and fresh.get_state() == state
    assert_same(take(fresh, 5), whole[3:])


def test_state_at_another_batch_size(root: str) -> None:
    iterator = train_iterator(config(root, augmentation=STILL), 2, 0, SPEC)
    take(iterator, 4)
    larger = train_iterator(config(root, augmentation=STILL), 4, 0, SPEC)
    larger.set_state(iterator.get_state())
    whole = take(train_iterator(config(root, augmentation=STILL), 4, 0, SPEC), 3)
    assert_same(take(larger, 1), whole[2:])


def test_broken_state(root: str) -> None:
    iterator = train_iterator(config(root), 2, 0, SPEC)
    for state in (b"", b"{}", b"[1]", b"\xff"):
        with pytest.raises(DataError, match="not a state"):
            iterator.set_state(state)


def test_processes_share_every_batch(root: str) -> None:
    """Two processes together read what one would, for any number of threads."""
    whole = take(train_iterator(config(root), 4, 0, SPEC), 3)
    shares = [
        take(train_iterator(config(root, num_threads=3), 4, 0, SPEC, (index, 2)), 3)
        for index in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        for key, values in batch.items():
            for index, part in enumerate(parts):
                np.testing.assert_array_equal(part[key], np.split(values, 2)[index])
    with pytest.raises(ValueError, match="batch_size 3 cannot be divided among 2 processes"):
        train_iterator(config(root), 3, 0, SPEC, (0, 2))


@pytest.mark.slow
def test_workers_give_the_same_stream(root: str) -> None:
    expected = take(train_iterator(config(root), 2, 0, SPEC), 5)
    iterator = train_iterator(config(root, num_workers=2), 2, 0, SPEC)
    assert_same(take(iterator, 3), expected[:3])
    again = train_iterator(config(root, num_workers=1), 2, 0, SPEC)
    again.set_state(iterator.get_state())
    assert_same(take(again, 2), expected[3:])


def test_cache(root: str) -> None:
    expected = take(train_iterator(config(root), 2, 0, SPEC), 6)
    iterator = train_iterator(config(root, cache=True), 2, 0, SPEC)
    batches = [next(iterator) for _ in range(3)]
    for path in Path(root).glob("**/*.png"):
        path.write_bytes(b"")  # every frame has been read by now
    assert_same(batches + [next(iterator) for _ in range(3)], expected)
    iterator.close()


def test_a_batch_larger_than_the_source(root: str) -> None:
    batch = take(train_iterator(config(root), 12, 0, SPEC), 1)[0]
    assert len(batch["id"]) == 12 and set(np.unique(batch["id"], return_counts=True)[1]) == {2, 3}


def test_errors_reach_the_caller(root: str) -> None:
    path = break_frame(root, 4)
    iterator = train_iterator(config(root), NUM_FRAMES, 0, SPEC)
    with pytest.raises(DataError, match=f"{path.name}"):
        next(iterator)
    iterator.close()


def test_an_error_of_every_frame_comes_before_the_first_batch(root: str) -> None:
    with pytest.raises(DataError, match="smaller than the crop 352x906"):
        train_iterator(config(root, augmentation=Augmentation()), 1, 0, SPEC)


def test_evaluation_samples(root: str, make_frame: Callable) -> None:
    source = kitti.Config(root=root)
    samples = evaluation_samples(source)
    assert len(samples) == NUM_FRAMES
    assert [sample["id"] for sample in samples] == frame_ids()
    image, depth = make_frame(4, (24, 60))
    np.testing.assert_array_equal(samples[4]["image"], image)
    np.testing.assert_array_equal(samples[4]["depth"], depth / np.float32(256))
    some = [sample["id"] for sample in evaluation_samples(source, limit=2)]
    assert some == [samples[0]["id"], samples[2]["id"]]
    assert len(evaluation_samples(source, limit=99)) == NUM_FRAMES


def test_a_root_may_start_with_a_tilde(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(root).parent))
    source = build_source(kitti.Config(root=f"~/{Path(root).name}"))
    np.testing.assert_array_equal(
        source[0]["depth"], build_source(kitti.Config(root=root))[0]["depth"]
    )


def test_from_a_mapping(root: str) -> None:
    mapping = {
        "source": {"name": "kitti", "root": root, "cameras": ["image_02"]},
        "augmentation": {"crop": [20, 40], "scale": [1.0, 1.2]},
    }
    built = from_mapping(DataConfig, mapping, resolve=registry.module)
    assert built.source == kitti.Config(root=root, cameras=("image_02",))
    assert built.augmentation == Augmentation(crop=(20, 40), scale=(1.0, 1.2))
    assert from_mapping(DataConfig, to_mapping(built), resolve=registry.module) == built
    assert len(build_source(built.source)) == NUM_FRAMES
    mapping["source"]["splitt"] = "val"
    with pytest.raises(ConfigError, match=r"config\.source\.splitt .*did you mean 'split'"):
        from_mapping(DataConfig, mapping, resolve=registry.module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth_range=(5.0, 1.0)), "depth_range is"),
        (dict(clean_share=1.5), "clean_share is 1.5"),
        (dict(num_workers=-1), "num_workers is -1"),
        (dict(num_threads=0), "num_threads 0"),
    ],
)
def test_values_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config("anywhere", **options)


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., adverse.Config]:
    """A workdir of frames whose generated image is black and whose clean one is bright."""

    def write(count: int = 5, label_is: str = "metric_depth") -> adverse.Config:
        rows = []
        for folder in ("images", "clean", "labels"):
            (tmp_path / folder).mkdir()
        for number in range(count):
            row = {"id": f"f{number}", "condition": "night", "variant": 0, "status": "ok"}
            row |= {"image": f"images/{number}.png", "clean": f"clean/{number}.png"}
            row |= {"label": f"labels/{number}.npy", "label_is": label_is, "intrinsics": None}
            rows.append(row)
            Image.new("RGB", (60, 24)).save(tmp_path / row["image"])
            clean = np.random.default_rng(number).integers(100, 200, (24, 60, 3), np.uint8)
            Image.fromarray(clean).save(tmp_path / row["clean"])
            zero = 150 if label_is == "relative_disparity" else 0
            np.save(tmp_path / row["label"], clean[..., 0].astype(np.float32) - zero)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "manifest.jsonl").write_text(text)
        return adverse.Config(root=str(tmp_path), relative="inverse")

    return write


def test_clean_images_and_relative_labels(write_pairs: Callable[..., adverse.Config]) -> None:
    pairs = write_pairs(label_is="relative_disparity")
    turned = Augmentation(crop=(20, 40), jitter=0.0, rotation=30.0)
    data = config("", source=pairs, augmentation=turned)
    (plain,) = take(train_iterator(data, 5, 0, SPEC), 1)
    (batch,) = take(train_iterator(data, 5, 0, SPEC, clean_images=True), 1)
    assert batch.keys() == plain.keys() | {"clean_image", "inside"}
    for key, values in plain.items():
        np.testing.assert_array_equal(batch[key], values)
    label, known = batch["relative_disparity"], batch["valid_mask"]
    assert label.shape == batch["inside"].shape == (5, 20, 40, 1) and label.dtype == np.float32
    assert batch["clean_image"].dtype == np.float32 and batch["inside"].dtype == bool
    assert (label < 0)[known].mean() > 0.3 and not label[~known].any() and not known.all()
    # The clean image is cropped and rotated like its label.
    red = (batch["clean_image"][..., :1] * SPEC.std[0] + SPEC.mean[0]) * 255 - 150
    inside = batch["inside"]
    assert 0.5 < inside.mean() < 1 and known[inside].all()
    assert np.corrcoef(red[inside], label[inside])[0, 1] > 0.7  # bicubic against nearest
    # Depth is the inverse of positive disparity, divided by s.
    positive = label > 0
    scaled = batch["depth"][0][positive[0]] * label[0][positive[0]]
    np.testing.assert_allclose(scaled, scaled[0], rtol=1e-5)
    assert (batch["depth"][~positive] == 0).all()


def test_clean_images_are_read_only_where_they_are_used(
    write_pairs: Callable[..., adverse.Config],
) -> None:
    """Broken ones do not affect training without them."""
    pairs = write_pairs()
    data = config("", source=pairs, augmentation=STILL)
    expected = take(train_iterator(data, 5, 0, SPEC), 2)
    for path in (Path(pairs.root) / "clean").iterdir():
        path.write_bytes(b"no image")
    assert_same(take(train_iterator(data, 5, 0, SPEC), 2), expected)
    mixed = mixture.Config(parts={"a": mixture.Part(pairs)})
    take(train_iterator(config("", source=mixed, augmentation=STILL), 5, 0, SPEC), 2)
    for source, options in ((pairs, dict(clean_share=0.5)), (pairs, {}), (mixed, {})):
        used = config("", source=source, augmentation=STILL, **options)
        with pytest.raises(DataError, match=r"clean/0\.png cannot be read"):
            train_iterator(used, 5, 0, SPEC, clean_images=not options)
    with pytest.raises(ConfigError, match="no clean image"):
        unread = dataclasses.replace(pairs, clean_images=False)
        train_iterator(config("", source=unread, augmentation=STILL), 5, 0, SPEC, clean_images=True)


@pytest.mark.parametrize(("share", "batch_size"), [(0.25, 4), (0.3, 10), (2 / 3, 3), (1.0, 2)])
def test_clean_share(
    write_pairs: Callable[..., adverse.Config], share: float, batch_size: int
) -> None:
    pairs = write_pairs()
    data = config("", source=pairs, augmentation=STILL, clean_share=share)
    batches = take(train_iterator(data, batch_size, 0, SPEC), 6)
    clean = [[image.max() > 0 for image in batch["image"]] for batch in batches]
    assert [sum(each) for each in clean] == [round(share * batch_size)] * 6
    # Two processes together see the same, also when they start later.
    for index in range(2 if batch_size % 2 == 0 else 0):
        part = train_iterator(data, batch_size, 0, SPEC, (index, 2))
        part.set_state(json.dumps({"samples": batch_size}).encode())
        for one, whole in zip(take(part, 2), batches[1:3], strict=True):
            np.testing.assert_array_equal(one["image"], np.split(whole["image"], 2)[index])
    # The clean frames change from epoch to epoch.
    if share < 1:
        names = np.concatenate([batch["id"] for batch in batches])[np.concatenate(clean)]
        assert len(set(names)) > 2


def test_a_clean_share_that_is_a_fraction_of_an_image(
    write_pairs: Callable[..., adverse.Config],
) -> None:
    data = config("", source=write_pairs(), augmentation=STILL, clean_share=0.3)
    batches = take(train_iterator(data, 4, 0, SPEC), 5)
    counts = [sum(image.max() > 0 for image in batch["image"]) for batch in batches]
    assert sum(counts) == 6 and set(counts) == {1, 2}


def test_options_that_need_pairs(root: str, write_pairs: Callable[..., adverse.Config]) -> None:
    with pytest.raises(
        ConfigError, match=r"_image_02 of the source 'kitti' has no clean image, .*clean=True"
    ):
        train_iterator(config(root), 2, 0, SPEC, clean_images=True)
    with pytest.raises(ConfigError, match=r"needed \(clean_share is 0\.5\)"):
        train_iterator(config(root, clean_share=0.5), 2, 0, SPEC)
    pairs = write_pairs(label_is="relative_disparity")
    data = config("", source=pairs, augmentation=STILL, depth_range=(1.0, 80.0))
    with pytest.raises(ConfigError, match=r"depth_range .*relative disparity: leave it out"):
        train_iterator(data, 2, 0, SPEC)


def test_real_frames(shared: Path) -> None:
    """Batches of the published sizes from real KITTI and NYU frames."""
    data = shared / "data"
    annotated = kitti.Config(
        root=str(data / "kitti_raw_metric3d"), depth_root=str(data / "kitti_depth"), split="val"
    )
    for source, augmentation in (
        (annotated, Augmentation()),
        (annotated, Augmentation(pre_crop="kb", crop=(352, 704))),
        (
            nyu.Config(root=str(data / "nyu_depth_v2"), layout="sync"),
            Augmentation(name="nyu", crop=(228, 304)),
        ),
    ):
        options = DataConfig(source=source, augmentation=augmentation)
        batch = take(train_iterator(options, 2, 0, InputSpec()), 1)[0]
        assert batch["image"].shape == (2, *augmentation.crop, 3)
        assert np.isfinite(batch["image"]).all() and abs(batch["image"].mean()) < 2
        assert batch["valid_mask"].mean() > 0.1


@pytest.mark.slow
def test_errors_reach_the_caller_from_workers(root: str) -> None:
    path = break_frame(root, 3)
    iterator = train_iterator(config(root, num_workers=1), NUM_FRAMES, 0, SPEC)
    with pytest.raises(DataError) as caught:
        next(iterator)
    assert re.fullmatch(f".*{path.name} cannot be read.*download it again", str(caught.value))
    iterator.close()


def test_a_broken_frame_is_replaced_by_the_next(
    root: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = dict(augmentation=STILL)
    expected = take(train_iterator(config(root, **options), 2, 0, SPEC), 10)
    broken = break_frame(root, 1)
    (missing,) = Path(root).glob("**/data/0000000002.png")
    missing.unlink()
    iterator = train_iterator(config(root, **options), 2, 0, SPEC, on_error="skip")
    batches = [next(iterator) for _ in range(10)]
    names = dict(zip(frame_ids(), [frame_ids()[i] for i in (0, 3, 3, 3, 4)], strict=True))
    for batch, whole in zip(batches, expected, strict=True):
        assert batch.keys() == whole.keys()
        assert list(batch["id"]) == [names[name] for name in whole["id"]]
    # Each is logged once, with file and reason, although it came up four times.
    assert sorted(iterator.skipped) == frame_ids()[1:3]
    assert f"{broken} cannot be read" in iterator.skipped[frame_ids()[1]]
    assert f"{missing} does not exist" in iterator.skipped[frame_ids()[2]]
    for reason in iterator.skipped.values():
        assert sum(reason in record.getMessage() for record in caplog.records) == 1
    iterator.close()

    # The same when two processes share the batch and resume midway; the state keeps the skips.
    caplog.clear()
    for index in range(2):
        part = train_iterator(
            config(root, num_threads=3, cache=True, **options), 2, 0, SPEC, (index, 2), "skip"
        )
        part.set_state(iterator.get_state())
        assert part.skipped == iterator.skipped
        part.set_state(b'{"samples": 8}')
        assert not part.skipped
        for batch, whole in zip(take(part, 6), batches[4:], strict=True):
            for key, values in batch.items():
                np.testing.assert_array_equal(values, whole[key][index::2])


def test_too_many_broken_frames(write_kitti: Callable[..., Path]) -> None:
    """Training stops if most frames, or all, cannot be read."""
    root = str(write_kitti([(DRIVE, "image_02", number) for number in range(30)]))
    paths = sorted(Path(root).glob("**/groundtruth/**/*.png"))
    for path in paths[10:20]:
        path.write_bytes(b"")
    take(train_iterator(config(root), 30, 0, SPEC, on_error="skip"), 1)
    paths[5].write_bytes(b"")
    iterator = train_iterator(config(root), 30, 0, SPEC, on_error="skip")
    with pytest.raises(
        DataError, match=r"11 of 30 frames cannot be read.*; the last error: .*\.png"
    ):
        next(iterator)
    iterator.close()
    for path in Path(root).glob("**/data/*.png"):
        path.unlink()
    with pytest.raises(DataError, match="11 of 30 frames"):
        train_iterator(config(root), 1, 0, SPEC, on_error="skip")


def test_only_data_faults_are_skipped(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: object) -> None:
        raise TypeError("a mistake in the code")

    monkeypatch.setattr("diffdepth_jax.data.io.read_image", mistaken)
    with pytest.raises(TypeError, match="a mistake"):
        train_iterator(config(root), 1, 0, SPEC, on_error="skip")
    with pytest.raises(TypeError, match="a mistake"):
        evaluation_samples(kitti.Config(root=root), on_error="skip")[0]


def test_broken_evaluation_samples(root: str, caplog: pytest.LogCaptureFixture) -> None:
    path = break_frame(root, 1)
    source = kitti.Config(root=root)
    with pytest.raises(DataError, match=f"{path.name}"):
        list(evaluation_samples(source))
    samples = evaluation_samples(source, on_error="skip")
    assert len(samples) == NUM_FRAMES
    for _ in range(2):
        assert samples[1].keys() == {"id", "error"} and samples[1]["id"] == frame_ids()[1]
        assert f"{path} cannot be read" in samples[1]["error"]
    assert len(caplog.records) == 1
    assert [sample["id"] for sample in readable(samples)] == frame_ids()[:1] + frame_ids()[2:]
    for image in Path(root).glob("**/data/*1.png"):
        image.unlink()  # A missing file is noticed when it is read.
    assert "does not exist" in evaluation_samples(source, on_error="skip")[1]["error"]
