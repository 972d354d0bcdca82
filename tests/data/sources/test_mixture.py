import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import registry
from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.data.pipeline import DataConfig, build_source, evaluation_samples, train_iterator
from diffdepth_jax.data.sources import adverse, folder, mixture
from diffdepth_jax.data.transforms import Augmentation
from diffdepth_jax.errors import ConfigError, MissingFileError
from diffdepth_jax.typing import InputSpec

STILL = Augmentation(crop=(8, 12), flip=0.0, rotation=0.0, jitter=0.0, scale=(1.0, 1.0))


@pytest.fixture
def clear(tmp_path: Path) -> Callable[..., folder.Config]:
    """Clear frames of one brightness."""

    def write(name: str, count: int, value: int) -> folder.Config:
        for part in ("image", "depth"):
            (tmp_path / name / part).mkdir(parents=True)
        for number in range(count):
            image = np.full((8, 12, 3), value + number, np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"image/{number}.png")
            np.save(tmp_path / name / f"depth/{number}.npy", np.full((8, 12), 5, np.float32))
        return folder.Config(root=str(tmp_path / name))

    return write


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., adverse.Config]:
    """A workdir of dark images whose clean ones have brightness 200."""

    def write(name: str, count: int, label_is: str = "metric_depth") -> adverse.Config:
        root, rows = tmp_path / name, []
        root.mkdir()
        Image.new("RGB", (12, 8), (200, 200, 200)).save(root / "clean.png")
        Image.new("RGB", (12, 8), (9, 9, 9)).save(root / "dark.png")
        np.save(root / "label.npy", np.full((8, 12), 4, np.float32))
        for number in range(count):
            row = {"id": f"{number}", "condition": "fog", "variant": 0, "status": "ok"}
            row |= {"image": "dark.png", "clean": "clean.png", "label": "label.npy"}
            rows.append(row | {"label_is": label_is, "intrinsics": None})
        (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return adverse.Config(root=str(root), relative="inverse")

    return write


def config(*parts: tuple, **options: object) -> mixture.Config:
    """Parts "a", "b", ... of (source, weight, clean)."""
    named = dict(zip("abc", (mixture.Part(*part) for part in parts), strict=False))
    return mixture.Config(parts=named, **options)


def test_without_weights_every_frame_comes_once(clear: Callable) -> None:
    both = build_source(config((clear("x", 3, 10),), (clear("y", 2, 50),)))
    assert [sample["id"] for sample in both] == ["a_0", "a_1", "a_2", "b_0", "b_1"]
    assert [int(sample["image"].max()) for sample in both] == [10, 11, 12, 50, 51]
    assert both.counts == {"a": 3, "b": 2} and both.examples == (0, 3)
    assert [frame.id for frame in both.frames] == [sample["id"] for sample in both]
    assert both.frames[4].image.endswith("y/image/1.png")
    assert "clean_image" not in both[0]


def test_the_order_of_the_parts_in_the_config_does_not_matter(clear: Callable) -> None:
    settings = config((clear("x", 3, 10), 1.0), (clear("y", 2, 50), 3.0))
    turned = dataclasses.replace(settings, parts=dict(reversed(settings.parts.items())))
    one, other = build_source(settings), build_source(turned)
    assert [sample["id"] for sample in one] == [sample["id"] for sample in other]
    for sample, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(sample["image"], same["image"])


def test_weights(clear: Callable) -> None:
    """The scarcest part comes once, others as often as their weights require."""
    x, y = clear("x", 6, 10), clear("y", 4, 50)
    mixed = build_source(config((x, 1.0), (y, 3.0)))
    assert mixed.counts == {"a": 6, "b": 18} and len(mixed) == 24
    ids = [sample["id"] for sample in mixed]
    assert len(set(ids)) == 24 and ids == [frame.id for frame in mixed.frames]
    counts = np.unique([s["image"].max() for s in mixed], return_counts=True)
    assert counts[0].tolist() == [10, 11, 12, 13, 14, 15, 50, 51, 52, 53]
    assert (counts[1][:6] == 1).all() and sorted(counts[1][6:]) == [4, 4, 5, 5]
    # The seed decides which frames come once more, and nothing else.
    chosen = []
    for seed in range(6):
        again = [build_source(config((x, 1.0), (y, 3.0), seed=seed)) for _ in range(2)]
        values = [[int(sample["image"].max()) for sample in source] for source in again]
        assert (
            values[0] == values[1] and values[0][:22] == [int(s["image"].max()) for s in mixed][:22]
        )
        chosen.append(tuple(values[0][22:]))
    assert len(set(chosen)) > 1
    assert build_source(config((x, 2.0), (y, 6.0))).counts == mixed.counts
    with pytest.raises(IndexError):
        mixed[24]


def test_the_stream_follows_the_weights(clear: Callable, pairs: Callable) -> None:
    """Pairs and clear frames in one stream; a clear one is its own clean image."""
    source = config((pairs("p", 6), 3.0), (clear("c", 4, 50), 1.0, True))
    data = DataConfig(source=source, augmentation=STILL)
    spec = InputSpec(mean=(0.0,) * 3, std=(1 / 255,) * 3)
    iterator = train_iterator(data, 8, 0, spec, clean_images=True)
    batches = [next(iterator) for _ in range(2)]  # 16 samples, one epoch
    iterator.close()
    ids = np.concatenate([batch["id"] for batch in batches])
    images, cleans = (
        np.concatenate([batch[key] for batch in batches]) for key in ("image", "clean_image")
    )
    paired = np.array([name.startswith("a_") for name in ids])
    assert paired.sum() == 12 and len(set(ids)) == 16
    np.testing.assert_allclose(images[paired], 9, atol=1e-3)
    np.testing.assert_allclose(cleans[paired], 200, atol=1e-3)
    np.testing.assert_array_equal(images[~paired], cleans[~paired])
    share = dataclasses.replace(data, clean_share=0.5)
    batch = next(train_iterator(share, 8, 0, spec))
    dark = (batch["image"] < 20).all((1, 2, 3))
    assert 0 < dark.sum() <= 4


def test_incompatible_parts(clear: Callable, pairs: Callable) -> None:
    metric, relative = pairs("m", 2), pairs("r", 2, "relative_disparity")

    def refused(message: str, source: mixture.Config, **options: object) -> None:
        data = DataConfig(source=source, augmentation=STILL)
        with pytest.raises(ConfigError, match=message):
            train_iterator(data, 2, 0, InputSpec(), **options)

    both = config((metric,), (relative,))
    refused("b_0_fog_0 is relative disparity, but that of a_0_fog_0 is metric", both)
    unclean = config((metric,), (clear("c", 2, 50),))
    refused(
        "b_0 of the source 'mixture' has no clean image.*clean=True", unclean, clean_images=True
    )
    with pytest.raises(MissingFileError, match=r"nowhere .*set root"):
        build_source(config((metric,), (folder.Config(root="nowhere"),)))


def test_missing_files_and_broken_frames(clear: Callable, tmp_path: Path) -> None:
    source = config((clear("x", 12, 10),), (clear("y", 2, 50),))
    (tmp_path / "y/image/1.png").write_bytes(b"")
    (tmp_path / "x/depth/3.npy").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 24 files"):
        build_source(source)
    samples = evaluation_samples(source, on_error="skip")
    broken = [sample["id"] for sample in samples if "error" in sample]
    assert broken == ["a_3", "b_1"] and samples.frame(13).id == "b_1"
    data = DataConfig(source=source, augmentation=STILL)
    iterator = train_iterator(data, 14, 0, InputSpec(), on_error="skip")
    next(iterator)
    iterator.close()
    assert sorted(iterator.skipped) == ["a_3", "b_1"]


def test_config(clear: Callable) -> None:
    settings = config((clear("x", 1, 10), 2.0, True), (adverse.Config(), 1.0), seed=3)
    mapping = json.loads(json.dumps(to_mapping(DataConfig(source=settings))))
    assert from_mapping(DataConfig, mapping, resolve=registry.module).source == settings
    mapping["source"]["parts"]["a"]["source"]["rooot"] = "x"
    with pytest.raises(ConfigError, match=r"source\.parts\.a\.source\.rooot .*did you mean 'root'"):
        from_mapping(DataConfig, mapping, resolve=registry.module)
    part = mixture.Part(folder.Config())
    for changes, message in [
        (dict(parts={}), "parts is empty"),
        (dict(parts={"a/b": part}), "parts has 'a/b'"),
        (dict(parts={"a": part, "b": mixture.Part(folder.Config(), 1.0)}), "parts.'a'. has no"),
        (dict(parts={"a": part}, seed=-1), "seed is -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            mixture.Config(**changes)
    with pytest.raises(ValueError, match=r"weight is 0\.0"):
        mixture.Part(folder.Config(), 0.0)
