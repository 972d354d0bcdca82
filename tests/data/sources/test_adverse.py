import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data import pipeline
from diffdepth_jax.data.sources import adverse
from diffdepth_jax.data.transforms import Augmentation
from diffdepth_jax.errors import ConfigError, DataError, MissingFileError
from diffdepth_jax.typing import InputSpec

SIZE = (8, 12)


def save(path: Path, value: int, size: tuple[int, int] = SIZE) -> None:
    """An image of one colour, which survives JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def values(frames: object) -> list[tuple[str, str, int, int]]:
    return [
        (s["id"], s["condition"], int(s["image"].mean()), int(s["clean_image"].mean()))
        for s in frames
    ]


def test_nuscenes(tmp_path: Path) -> None:
    root, clean = tmp_path / "driving/nuscenes", tmp_path / "original"
    save(root / "challenging/night/samples/CAM_FRONT/a.jpg", 20)
    save(root / "challenging/rain/samples/CAM_FRONT/a.jpg", 40)
    save(root / "challenging/rain/samples/CAM_FRONT/b.jpg", 60)
    save(clean / "samples/CAM_FRONT/a.jpg", 80)
    save(clean / "samples/CAM_FRONT/b.jpg", 100)
    expected = [
        ("night_samples_CAM_FRONT_a", "night-clear", 20, 80),
        ("rain_samples_CAM_FRONT_a", "day-rain", 40, 80),
        ("rain_samples_CAM_FRONT_b", "day-rain", 60, 100),
    ]
    frames = adverse.source("all", root, clean_root=str(clean))
    assert values(frames) == expected
    assert not frames[0]["depth"].any() and np.isnan(frames[0]["intrinsics"]).all()
    only = adverse.source("all", root / "challenging/rain", clean_root=str(clean))
    assert [sample["id"] for sample in only] == ["samples_CAM_FRONT_a", "samples_CAM_FRONT_b"]


def test_cityscapes_with_labels(tmp_path: Path) -> None:
    """Another suffix, one folder less, a smaller generated image, and the clean image's depth."""
    name = "train/aachen/aachen_000000_000019_leftImg8bit"
    save(tmp_path / f"adverse/challenging/left/{name}.jpg", 20, (4, 6))
    save(tmp_path / f"leftImg8bit/{name}.png", 90)
    label = tmp_path / f"labels/{name}.png"
    label.parent.mkdir(parents=True)
    Image.fromarray(np.full(SIZE, 1280, np.uint16)).save(label)
    roots = dict(clean_root=str(tmp_path / "leftImg8bit"), depth_root=str(tmp_path / "labels"))
    (sample,) = adverse.source("all", tmp_path / "adverse", **roots, depth_scale=256.0)
    assert sample["image"].shape == sample["clean_image"].shape == (*SIZE, 3)
    assert (sample["depth"] == 5).all() and sample["condition"] == "adverse"
    label.unlink()
    with pytest.raises(MissingFileError, match=r"set depth_root"):
        adverse.source("all", tmp_path / "adverse", **roots, depth_scale=256.0)


def test_pairs_without_label(tmp_path: Path) -> None:
    """An error counts them; or they are skipped, counted and named."""
    for number in range(12):
        save(tmp_path / f"ToM/glass/challenging/{number:02d}.jpg", 10 + number)
        save(tmp_path / f"ToM/glass/easy/{number:02d}.jpg", 100 + number)
        (tmp_path / "labels").mkdir(exist_ok=True)
        np.save(tmp_path / f"labels/{number:02d}.npy", np.full(SIZE, 5, np.float32))
    for number in (3, 7):
        (tmp_path / f"labels/{number:02d}.npy").unlink()
    config = adverse.Config(root=str(tmp_path / "ToM"), depth_root=str(tmp_path / "labels"))
    complaint = (
        r"2 of 12 images have no label; the first error: .*03\.jpg has no.*set depth_root.*'skip'"
    )
    with pytest.raises(MissingFileError, match=complaint):
        pipeline.build_source(config)
    still = Augmentation(crop=SIZE, flip=0.0, rotation=0.0, jitter=0.0, scale=(1.0, 1.0))
    data = pipeline.DataConfig(source=config, augmentation=still)
    iterator = pipeline.train_iterator(data, 12, 0, InputSpec(), on_error="skip")
    batch = next(iterator)
    iterator.close()
    assert batch["valid_mask"].all() and len(set(batch["id"])) == 10
    assert sorted(iterator.skipped) == ["glass_03", "glass_07"]
    assert all("has no label" in reason for reason in iterator.skipped.values())


def test_transparent_and_mirrors(tmp_path: Path) -> None:
    for number, name in enumerate(["glass_bottle", "mirror"]):
        save(tmp_path / f"ToM/{name}/challenging/0001.jpg", 10 + number)
        save(tmp_path / f"ToM/{name}/easy/0001.jpg", 100 + number)
    assert values(adverse.source("all", tmp_path / "ToM")) == [
        ("glass_bottle_0001", "adverse", 10, 100),
        ("mirror_0001", "adverse", 11, 101),
    ]


def test_linked_folders_are_read(tmp_path: Path) -> None:
    for number, place in enumerate(["ToM/mirror", "elsewhere"]):
        save(tmp_path / f"{place}/challenging/0001.jpg", 10 + number)
        save(tmp_path / f"{place}/easy/0001.jpg", 100 + number)
    save(tmp_path / "more/0002.jpg", 12)
    save(tmp_path / "ToM/mirror/easy/0002.jpg", 102)
    (tmp_path / "ToM/glass").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "ToM/mirror/challenging/more").symlink_to(tmp_path / "more")
    assert values(adverse.source("all", tmp_path / "ToM")) == [
        ("glass_0001", "adverse", 11, 101),
        ("mirror_0001", "adverse", 10, 100),
        ("mirror_more_0002", "adverse", 12, 102),
    ]


def test_bad_input(tmp_path: Path) -> None:
    save(tmp_path / "robotcar/challenging/1.jpg", 10)
    with pytest.raises(MissingFileError, match=r"1\.jpg .* set clean_root"):
        adverse.source("all", tmp_path / "robotcar")
    late = adverse.source("all", tmp_path / "robotcar", check_files=False)
    with pytest.raises(MissingFileError, match=r"1\.jpg"):
        late[0]
    with pytest.raises(MissingFileError, match=r"nowhere .*set clean_root"):
        adverse.source("all", tmp_path, clean_root=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"challenging.*empty"):
        adverse.source("all", tmp_path / "empty")


def write_workdir(root: Path, **changes: object) -> None:
    """A workdir with three images of one frame, the second one rejected."""
    save(root / "clean/a.png", 90)
    (root / "labels").mkdir()
    np.save(root / "labels/a.npy", np.full(SIZE, 4, np.float32))
    rows = []
    for number, condition in enumerate(("night", "rain", "fog")):
        save(root / f"images/{condition}/a_0.png", 20 + number)
        row = {"id": "a", "condition": condition, "variant": 0, "status": "ok"}
        row |= {"image": f"images/{condition}/a_0.png", "label": "labels/a.npy"}
        row |= {"clean": "clean/a.png", "label_is": "metric_depth", "intrinsics": None}
        rows.append(row | changes)
    rows[0]["intrinsics"] = [100.0, 0, 6, 0, 100, 4, 0, 0, 1]
    rows[1]["status"] = "rejected"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "manifest.jsonl").write_text(text)


def test_a_workdir(tmp_path: Path) -> None:
    write_workdir(tmp_path)
    frames = adverse.source("all", tmp_path)
    assert values(frames) == [("a_night_0", "night", 20, 90), ("a_fog_0", "fog", 22, 90)]
    assert (frames[0]["depth"] == 4).all() and frames[0]["depth"].dtype == np.float32
    assert frames[0]["intrinsics"].tolist() == [[100, 0, 6], [0, 100, 4], [0, 0, 1]]
    assert np.isnan(frames[1]["intrinsics"]).all()
    only = adverse.source("all", tmp_path, conditions=("fog",))
    assert [sample["id"] for sample in only] == ["a_fog_0"]


def test_a_workdir_of_disparity(tmp_path: Path) -> None:
    write_workdir(tmp_path, label_is="relative_disparity")
    disparity = np.full(SIZE, 4, np.float32)
    disparity[0] = 0
    np.save(tmp_path / "labels/a.npy", disparity)
    with pytest.raises(ConfigError, match=r"relative disparity.*relative='inverse'"):
        adverse.source("all", tmp_path)
    sample = adverse.source("all", tmp_path, relative="inverse")[0]
    assert (sample["depth"][0] == 0).all() and (sample["depth"][1:] == 0.25).all()
    np.testing.assert_array_equal(sample["relative_disparity"], disparity)
    disparity[1, :3] = -2, np.nan, np.inf
    np.save(tmp_path / "labels/a.npy", disparity)
    sample = adverse.source("all", tmp_path, relative="inverse")[0]
    assert (sample["depth"][1, :3] == 0).all() and (sample["depth"][1, 3:] == 0.25).all()
    disparity[1, 2] = np.nan
    np.testing.assert_array_equal(sample["relative_disparity"], disparity)  # 0 and -2 are labels
    np.save(tmp_path / "labels/a.npy", disparity[1:])
    with pytest.raises(DataError, match=r"differ in size: a_night_0.*labels/a\.npy"):
        adverse.source("all", tmp_path, relative="inverse")[0]


def test_skipped_images_are_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_workdir(tmp_path)
    frames = adverse.source("all", tmp_path)
    (record,) = caplog.records
    assert "1 of 3 images in" in record.getMessage() and "1 rejected, 0 failed" in record.message
    list(frames)
    assert len(caplog.records) == 1 and (frames.num_rejected, frames.num_failed) == (1, 0)
    caplog.clear()
    frames = adverse.source("all", tmp_path, conditions=("fog",))
    assert not caplog.records and (frames.num_rejected, frames.num_failed) == (0, 0)


def test_a_clean_image_of_another_size(tmp_path: Path) -> None:
    write_workdir(tmp_path)
    save(tmp_path / "clean/a.png", 90, (9, 12))
    with pytest.raises(DataError, match=r"differ in size: .*clean/a\.png"):
        adverse.source("all", tmp_path)[0]


def test_labels_of_several_kinds(tmp_path: Path) -> None:
    write_workdir(tmp_path)
    path = tmp_path / "manifest.jsonl"
    path.write_text(path.read_text().replace("metric_depth", "relative_disparity", 1))
    with pytest.raises(DataError, match=r"several kinds .metric_depth, relative_disparity"):
        adverse.source("all", tmp_path)


def test_relative_labels_of_the_published_layout(tmp_path: Path) -> None:
    save(tmp_path / "ToM/mirror/challenging/0001.jpg", 10)
    save(tmp_path / "ToM/mirror/easy/0001.jpg", 100)
    label = np.full(SIZE, 4, np.float32)
    label[0] = -1
    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "labels/0001.npy", label)
    roots = dict(depth_root=str(tmp_path / "labels"), relative="inverse")
    (sample,) = adverse.source("all", tmp_path / "ToM", **roots)
    np.testing.assert_array_equal(sample["relative_disparity"], label)
    assert (sample["depth"][0] == 0).all() and (sample["depth"][1:] == 0.25).all()


def test_bad_workdirs(tmp_path: Path) -> None:
    write_workdir(tmp_path)
    with pytest.raises(ConfigError, match=r"conditions has 'snow'.*has night, rain, fog"):
        adverse.source("all", tmp_path, conditions=("snow",))
    with pytest.raises(ConfigError, match="depth_root is set"):
        adverse.source("all", tmp_path, depth_root=str(tmp_path))
    with pytest.raises(DataError, match=r"no frames in .*manifest\.jsonl"):
        adverse.source("all", tmp_path, conditions=("rain",))
    (tmp_path / "images/fog/a_0.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 6 files.*a_0\.png.*again"):
        adverse.source("all", tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "condition": "night"}\n')
    with pytest.raises(DataError, match=r"not a manifest of generate_adverse.*status"):
        adverse.source("all", tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"id": "a"\n')
    with pytest.raises(DataError, match="line 1 is not valid JSON"):
        adverse.source("all", tmp_path)
    (tmp_path / "manifest.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"has no manifest\.jsonl"):
        adverse.source("all", tmp_path, conditions=("fog",))
