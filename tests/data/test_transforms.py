"""Augmentation against a literal step-by-step version, and against the geometry it claims."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from diffdepth_jax.data.geometry import rotation_map
from diffdepth_jax.data.sources import Sample, kitti, nyu
from diffdepth_jax.data.transforms import Augmentation, augment, kb_crop
from diffdepth_jax.errors import DataError

INTRINSICS = np.array([[70, 0, 45.3], [0, 72, 22.1], [0, 0, 1]], np.float32)
STILL = dict(flip=0.0, rotation=0.0, jitter=0.0, scale=(1.0, 1.0))
NEAREST, BILINEAR, BICUBIC = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
)


def sample(size: tuple[int, int] = (50, 90), share: float = 0.5) -> Sample:
    rng = np.random.default_rng(7)
    depth = rng.uniform(1, 80, size).astype(np.float32)
    return Sample(
        image=np.asarray(
            Image.fromarray(rng.integers(0, 256, (9, 15, 3), np.uint8)).resize(size[::-1], BICUBIC)
        ),
        depth=np.where(rng.uniform(size=size) < share, depth, np.float32(0)),
        intrinsics=INTRINSICS,
        id="frame",
        condition="",
    )


class Draws(np.random.Generator):
    """A generator that returns given numbers, so that a test knows what was drawn."""

    def __init__(
        self,
        scale: float,
        degrees: float,
        coin: float,
        jitter: tuple[float, ...],
        order: tuple[int, ...],
        place: tuple[float, float],
    ):
        super().__init__(np.random.PCG64())
        self.numbers = [scale, degrees, coin, np.array(jitter), np.array(place)]
        self.order = np.array(order)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: int | None = None) -> object:
        return self.numbers.pop(0)

    def permutation(self, count: int) -> np.ndarray:
        return self.order


def enhanced(image: Image.Image, factors: tuple[float, ...], order: tuple[int, ...]) -> Image.Image:
    steps = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in order:
        image = steps[index](image).enhance(factors[index])
    return image


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("s", "place"), [(1.0, (0.0, 0.999)), (1.37, (0.5, 0.2)), (1.5, (1, 1))])
def test_kitti_is_the_published_sequence(flip: bool, s: float, place: tuple[float, float]) -> None:
    frame, factors, crop = sample(), (1.3, 0.7, 1.2), (40, 60)
    place = tuple(np.minimum(place, 1 - 1e-9))
    draws = Draws(s, 0.6, 0.1 if flip else 0.9, factors, (2, 1, 0), place)
    got = augment(frame, Augmentation(crop=crop), draws)

    image, depth = Image.fromarray(frame["image"]), Image.fromarray(frame["depth"])
    if flip:
        image, depth = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (image, depth))
    image = enhanced(image.rotate(3.0, BICUBIC), factors, (0, 1, 2))
    depth = depth.rotate(3.0, NEAREST)
    rows = int(50 * s)
    size = (int(rows * 90 / 50), rows)
    top, left = int(place[0] * (size[1] - 40 + 1)), int(place[1] * (size[0] - 60 + 1))
    box = (left, top, left + 60, top + 40)
    image, depth = image.resize(size, BICUBIC).crop(box), depth.resize(size, NEAREST).crop(box)

    assert np.abs(got["image"].astype(int) - np.asarray(image)).max() <= 1
    np.testing.assert_array_equal(got["depth"], np.asarray(depth) / np.float32(s))
    assert got["image"].shape == (40, 60, 3) and got["depth"].shape == crop
    assert (got["depth"] > 0).mean() > 0.3


def test_a_large_kitti_frame() -> None:
    """Here the contrast mean is of a subsample; it may be off by one, which jitter amplifies."""
    frame, factors, s = sample((375, 1242)), (1.4, 0.6, 1.4), 1.2
    got = augment(frame, Augmentation(), Draws(s, 1.0, 0.9, factors, (0, 1, 2), (0.4, 0.3)))
    image = enhanced(Image.fromarray(frame["image"]).rotate(5.0, BICUBIC), factors, (0, 1, 2))
    top, left = int(0.4 * (450 - 352 + 1)), int(0.3 * (1490 - 906 + 1))
    image = image.resize((1490, 450), BICUBIC).crop((left, top, left + 906, top + 352))
    difference = np.abs(got["image"].astype(int) - np.asarray(image))
    assert difference.max() <= 4 and difference.mean() < 0.6


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_nyu_is_the_published_sequence(order: tuple[int, ...]) -> None:
    frame, factors, s = sample((300, 400), share=1.0), (0.8, 1.4, 0.6), 1.21
    config = Augmentation(name="nyu", crop=(228, 304))
    got = augment(frame, config, Draws(s, -0.5, 0.2, factors, order, (0.3, 0.3)))

    image, depth = (
        Image.fromarray(frame[key]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(-2.5, NEAREST)
        for key in ("image", "depth")
    )
    rows = int(240 * s)
    size = (int(rows * 400 / 300), rows)
    top, left = round((rows - 228) / 2), round((size[0] - 304) / 2)
    box = (left, top, left + 304, top + 228)
    image = enhanced(image.resize(size, BILINEAR), factors, order).crop(box)
    depth = np.asarray(depth.resize(size, BILINEAR).crop(box)) / np.float32(s)
    np.testing.assert_array_equal(got["image"], np.asarray(image))
    measured = got["depth"] > 0
    np.testing.assert_array_equal(got["depth"][measured], depth[measured])
    assert measured.mean() > 0.98


def test_nyu_never_mixes_measured_with_unmeasured() -> None:
    frame = sample((300, 400))
    frame["depth"] = np.full((300, 400), 5, np.float32)
    frame["depth"][100:160, 200:260] = 0
    config = Augmentation(name="nyu", crop=(228, 304), **{**STILL, "rotation": 5.0})
    for seed in range(4):
        depth = augment(frame, config, np.random.default_rng(seed))["depth"]
        assert set(np.unique(depth.round(4))) == {0, 5}


def points(frame: Sample) -> np.ndarray:
    """The point cloud [n, 3] in camera coordinates; the intrinsics undo a roll of the camera."""
    rows, columns = np.nonzero(frame["depth"])
    pixels = np.stack([columns, rows, np.ones(len(rows))])
    rays = np.linalg.solve(frame["intrinsics"].astype(np.float64), pixels)
    return (rays * frame["depth"][rows, columns]).T


@pytest.mark.parametrize("name", ["kitti", "nyu"])
def test_intrinsics_follow_the_pixels(name: str) -> None:
    """After augmentation, a few exact depths are still on their viewing rays.

    Depth is divided by s, so the cloud must be the old one divided by s, up to half a pixel.
    """
    size, crop = ((50, 90), (44, 80)) if name == "kitti" else ((240, 320), (228, 304))
    frame = sample(size)
    frame["depth"] = np.zeros(size, np.float32)
    # Blocks, so that they survive resizing; distinct depths, so that they can be told apart.
    for index in range(12):
        row, column = 10 + 9 * (index // 4), 14 + 17 * (index % 4)
        row, column = (row, column) if name == "kitti" else (row * 5, column * 3)
        frame["depth"][row : row + 5, column : column + 5] = 10 + index
    before = {d: points(frame)[frame["depth"][frame["depth"] > 0] == d] for d in range(10, 22)}
    config = Augmentation(name=name, crop=crop, rotation=5.0, jitter=0.0, flip=0.5)
    found = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        s = np.random.default_rng(seed).uniform(1.0, 1.5)
        after = augment(frame, config, rng)
        cloud = points(after) * s
        assert np.linalg.det(after["intrinsics"].astype(np.float64)) != 0
        for depth, old in before.items():
            new = cloud[np.abs(cloud[:, 2] - depth) < 1e-3]
            if len(new) < 12:  # cut off by the crop
                continue
            rows, columns = np.nonzero(np.abs(after["depth"] * s - depth) < 1e-3)
            if min(rows.min(), columns.min()) == 0 or rows.max() + 1 == crop[0]:
                continue
            if columns.max() + 1 == crop[1]:
                continue
            found += 1
            tolerance = 0.7 * depth / 70  # less than a pixel at this depth
            np.testing.assert_allclose(new.mean(0), old.mean(0), atol=tolerance)
    assert found > 20


def test_rotation_is_a_roll_of_the_camera() -> None:
    """With a centred principal point and square pixels it only turns the axes."""
    intrinsics = np.array([[70, 0, 44.5], [0, 70, 24.5], [0, 0, 1]])
    roll = np.linalg.inv(intrinsics) @ rotation_map((50, 90), 5.0) @ intrinsics
    cosine, sine = np.cos(np.radians(5)), np.sin(np.radians(5))
    np.testing.assert_allclose(roll, [[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], atol=1e-12)


def test_still_augmentation_only_crops() -> None:
    frame = sample()
    whole = augment(frame, Augmentation(crop=(50, 90), **STILL), np.random.default_rng(0))
    for key in ("image", "depth", "intrinsics"):
        np.testing.assert_array_equal(whole[key], frame[key])
    part = augment(frame, Augmentation(crop=(20, 30), **STILL), np.random.default_rng(0))
    left, top = np.rint(INTRINSICS[:2, 2] - part["intrinsics"][:2, 2]).astype(int)
    assert top > 0 and left > 0
    window = slice(top, top + 20), slice(left, left + 30)
    np.testing.assert_array_equal(part["image"], frame["image"][window])
    np.testing.assert_array_equal(part["depth"], frame["depth"][window])


def test_kb_crop_includes_optional_fields() -> None:
    frame = sample((376, 1241)) | {"baseline": 0.5}
    frame |= {"tom_mask": frame["depth"] > 40, "clean_image": 255 - frame["image"]}
    part = kb_crop(frame)
    np.testing.assert_array_equal(part["tom_mask"], part["depth"] > 40)
    np.testing.assert_array_equal(part["clean_image"], 255 - part["image"])


@pytest.mark.parametrize("name", ["kitti", "nyu", "distillation"])
def test_optional_fields_are_augmented_too(name: str) -> None:
    """If all are made from one map, they still agree afterwards, whatever was drawn."""
    frame = sample((300, 400), share=0.9)
    grey = (frame["depth"] * 3).astype(np.uint8)
    frame["image"] = np.stack([grey] * 3, -1)
    frame |= {"baseline": 0.5, "disparity": frame["depth"], "clean_image": frame["image"]}
    frame |= {"tom_mask": frame["depth"] > 40, "categories": (frame["depth"] / 20).astype(np.uint8)}
    frame["relative_disparity"] = np.where(frame["depth"] > 0, 30 - frame["depth"], np.nan)
    frame["relative_disparity"] = frame["relative_disparity"].astype(np.float32)
    config = Augmentation(name=name, crop=(200, 260), rotation=5.0, jitter=0.4, rgb_shift=30.0)
    plain = dataclasses.replace(config, jitter=0.0, rgb_shift=0.0)
    for seed in range(3):
        got, same = (augment(frame, c, np.random.default_rng(seed)) for c in (config, plain))
        s = np.random.default_rng(seed).uniform(1.0, 1.5)
        assert got.keys() == frame.keys() - {"disparity"}
        # The clean image keeps its colours.
        np.testing.assert_array_equal(got["clean_image"], same["image"])
        assert (got["clean_image"] != got["image"]).mean() > 0.5
        known = got["depth"] > 0
        np.testing.assert_array_equal(np.isfinite(got["relative_disparity"]), known)
        label = 30 - got["depth"][known] * np.float32(s)
        # On NYU the bilinear resize lets in up to 0.1% of an unknown neighbour.
        tolerance = 0.08 if name == "nyu" else 1e-4
        np.testing.assert_allclose(got["relative_disparity"][known], label, atol=tolerance)
        assert label.min() < 0
        assert (got["tom_mask"].dtype, got["categories"].dtype) == (bool, np.uint8)
        if name != "nyu":  # which interpolates depth
            np.testing.assert_array_equal(got["tom_mask"], got["depth"] * np.float32(s) > 40)
            classes = np.where(known, got["depth"] * np.float32(s) / 20, 0).astype(np.uint8)
            # Multiples of 20 may round either way.
            assert (got["categories"] == classes).mean() > 0.999


@pytest.mark.parametrize("name", ["kitti", "nyu", "distillation"])
def test_inside_excludes_what_a_rotation_fills_in(name: str) -> None:
    """In a frame of one colour, pixels that are inside keep it."""
    frame = sample((300, 400), share=1.0)
    frame["image"] = np.full((300, 400, 3), 200, np.uint8)
    config = Augmentation(name=name, crop=(228, 304), jitter=0.0, rotation=20.0, scale=(1.0, 1.0))
    for seed in range(4):
        got = augment(frame, config, np.random.default_rng(seed), inside=True)
        untouched = (np.abs(got["image"].astype(int) - 200) <= 1).all(-1)  # up to rounding
        assert untouched[got["inside"]].all()
        # Only a seam is left out needlessly: there kernels reach outside without effect.
        assert 0 < got["inside"].mean() < 1 and (untouched & ~got["inside"]).mean() < 0.02
    still = dataclasses.replace(config, rotation=0.0)
    assert augment(frame, still, np.random.default_rng(0), inside=True)["inside"].all()


def test_distillation_keeps_the_aspect_ratio_and_just_covers_the_crop() -> None:
    for size, crop in [((50, 90), (60, 60)), ((90, 50), (60, 60)), ((50, 90), (30, 80))]:
        frame = sample(size, share=1.0)
        base = max(crop[0] / size[0], crop[1] / size[1])
        lefts = set()
        for s in (1.0, 1.4):
            options = dict(crop=crop, flip=0.0, rotation=0.0, jitter=0.0, scale=(s, s))
            config = Augmentation(name="distillation", **options)
            for seed in range(20):
                got = augment(frame, config, np.random.default_rng(seed))
                assert got["image"].shape == (*crop, 3)
                focal = got["intrinsics"][[0, 1], [0, 1]] / INTRINSICS[[0, 1], [0, 1]]
                np.testing.assert_allclose(focal, base * s, rtol=0.02)  # sizes are whole pixels
                assert np.isin(got["depth"], frame["depth"] / np.float32(s)).all()
                lefts.add(round(float(got["intrinsics"][0, 2])))
        assert len(lefts) > 10
    with pytest.raises(DataError, match="smaller than the crop"):
        config = Augmentation(name="distillation", crop=(60, 60), scale=(0.8, 1.0))
        augment(sample(), config, np.random.default_rng(0))


def test_rgb_shift_moves_each_colour() -> None:
    frame = sample()
    frame["image"] = np.full((50, 90, 3), 128, np.uint8)
    frame["image"][0] = 250
    config = Augmentation(crop=(50, 90), rgb_shift=40.0, **STILL)
    shifts = []
    for seed in range(30):
        image = augment(frame, config, np.random.default_rng(seed))["image"].astype(int)
        (shift,) = np.unique(image[1:].reshape(-1, 3), axis=0) - 128
        np.testing.assert_array_equal(image[0], np.minimum(250 + shift, 255)[None].repeat(90, 0))
        shifts.append(shift)
    assert np.abs(shifts).max() in range(35, 41) and np.ptp(shifts, axis=1).min() > 0
    # It is drawn last, so everything else is as without it.
    moving = Augmentation(crop=(20, 30), rgb_shift=40.0)
    one, other = (
        augment(sample(), c, np.random.default_rng(5))
        for c in (moving, dataclasses.replace(moving, rgb_shift=0.0))
    )
    np.testing.assert_array_equal(one["depth"], other["depth"])
    difference = one["image"].astype(int) - other["image"]
    for channel in range(3):
        inner = (other["image"][..., channel] > 40) & (other["image"][..., channel] < 215)
        assert len(np.unique(difference[..., channel][inner])) == 1


def test_drawn_ranges() -> None:
    """Draws fill their ranges and stay inside; crops go everywhere, half the frames are flipped."""
    frame, config = (
        sample(),
        Augmentation(crop=(40, 60), rotation=0.0, jitter=0.0, scale=(1.0, 1.0)),
    )
    flips, corners = [], []
    for seed in range(200):
        intrinsics = augment(frame, config, np.random.default_rng(seed))["intrinsics"]
        flips.append(intrinsics[0, 0] < 0)
        centre = 89 - INTRINSICS[0, 2] if flips[-1] else INTRINSICS[0, 2]
        corners.append((INTRINSICS[1, 2] - intrinsics[1, 2], centre - intrinsics[0, 2]))
    assert 70 < sum(flips) < 130
    tops, lefts = np.rint(np.array(corners)).astype(int).T
    assert set(tops) == set(range(11)) and lefts.min() == 0 and lefts.max() == 30


def test_deterministic_and_inputs_unchanged() -> None:
    frame, config = sample(), Augmentation(crop=(40, 60))
    copies = {key: frame[key].copy() for key in ("image", "depth", "intrinsics")}
    one, same = (augment(frame, config, np.random.default_rng(3)) for _ in range(2))
    other = augment(frame, config, np.random.default_rng(4))
    for key, copy in copies.items():
        np.testing.assert_array_equal(one[key], same[key])
        np.testing.assert_array_equal(frame[key], copy)
        assert (one[key] != other[key]).any()
    assert (one["image"].dtype, one["depth"].dtype) == (np.uint8, np.float32)
    assert one["intrinsics"].dtype == np.float32


def test_a_frame_that_is_too_small_always_fails() -> None:
    config = Augmentation(crop=(60, 60))
    for seed in range(5):  # with most of these seeds the scale takes 50 rows to 60
        with pytest.raises(DataError, match=r"frame is 50x90 .*.*60x60"):
            augment(sample(), config, np.random.default_rng(seed))
    with pytest.raises(DataError, match="smaller than the crop"):
        augment(sample(), Augmentation(name="nyu", crop=(241, 304)), np.random.default_rng(0))


def test_kb_crop() -> None:
    frame = sample((375, 1242))
    got = kb_crop(frame)
    np.testing.assert_array_equal(got["image"], frame["image"][23:, 13:1229])
    np.testing.assert_array_equal(got["depth"], frame["depth"][23:, 13:1229])
    np.testing.assert_allclose(got["intrinsics"][:2, 2], INTRINSICS[:2, 2] - [13, 23], atol=1e-5)
    with pytest.raises(DataError, match=r"frame: .*50x90 is smaller than the kb crop"):
        kb_crop(sample())
    config = Augmentation(crop=(352, 1216), pre_crop="kb", **STILL)
    cut = augment(frame, config, np.random.default_rng(0))
    np.testing.assert_array_equal(cut["image"], got["image"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", (0, 5)),
        ("flip", 2.0),
        ("rotation", -1.0),
        ("jitter", 3.0),
        ("rgb_shift", -1.0),
        ("scale", (1.5, 1.0)),
    ],
)
def test_values_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} is"):
        Augmentation(**{field: value})


def test_real_frames_keep_their_depth(shared: Path) -> None:
    """Augmented depth times s occurs in the frame, about as densely."""
    data = shared / "data"
    frames = kitti.source("val", data / "kitti_raw_metric3d", depth_root=str(data / "kitti_depth"))
    for seed in range(3):
        s = np.random.default_rng(seed).uniform(1.0, 1.5)
        got = augment(frames[0], Augmentation(), np.random.default_rng(seed))
        assert got["depth"].shape == (352, 906)
        assert np.isnan(got["intrinsics"]).any()  # these frames have no calibration
        values = np.rint(got["depth"] * np.float32(s) * 256)
        assert set(np.unique(values)) <= set(np.unique(frames[0]["depth"] * 256))
        assert 0.12 < (got["depth"] > 0).mean() < 0.3
    rooms = nyu.source("train", data / "nyu_depth_v2", layout="sync")
    got = augment(rooms[0], Augmentation(name="nyu", crop=(228, 304)), np.random.default_rng(0))
    assert got["depth"].shape == (228, 304) and 0.8 < (got["depth"] > 0).mean() < 0.98
