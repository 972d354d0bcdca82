import itertools

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.evaluation.protocols import crops, frames


def test_the_kb_crop_is_at_the_bottom_centre():
    rows, columns = np.mgrid[:375, :1242]
    crop = frames.take(np.stack([rows, columns], axis=-1), "kb")
    assert crop.shape == (352, 1216, 2)
    assert crop[0, 0].tolist() == [375 - 352, 13] and crop[-1, -1].tolist() == [374, 13 + 1215]
    odd = frames.take(np.mgrid[:370, :1227][1], "kb")
    assert odd[0, 0] == (1227 - 1216) // 2


def test_a_frame_smaller_than_the_crop_is_an_error():
    with pytest.raises(ValueError, match="64x192 is smaller than the kb crop of 352x1216"):
        frames.take(np.zeros((64, 192)), "kb")


def test_a_kb_crop_is_put_back_where_it_came_from():
    full = np.random.default_rng(0).random((376, 1241))
    back = frames.put_back(frames.take(full, "kb"), full.shape)
    covered = np.isfinite(back)
    assert covered.sum() == 352 * 1216
    np.testing.assert_array_equal(back[covered], full[covered])


def test_crop_boxes():
    # int() of the fractions, for 375x1242 and for the kb crop.
    assert crops.crop_box("kitti", "garg", (375, 1242)) == (slice(153, 371), slice(44, 1197))
    assert crops.crop_box("kitti", "garg", (352, 1216)) == (slice(143, 349), slice(43, 1172))
    assert crops.crop_box("kitti", "eigen", (375, 1242)) == (slice(124, 342), slice(44, 1197))
    assert crops.crop_box("nyu", "eigen", (480, 640)) == (slice(45, 471), slice(41, 601))
    assert crops.crop_box("any", "none", (5, 7)) == (slice(0, 5), slice(0, 7))
    with pytest.raises(ValueError, match="480x640, not 240x320"):
        crops.crop_box("nyu", "eigen", (240, 320))


def test_nyu_release_resizes_to_240_rows_and_takes_the_centre():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (480, 640, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((320, 240), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(frames.take(image, "nyu_release"), expected[6:234, 8:312])

    depth = generator.uniform(1, 9, (480, 640)).astype(np.float32)
    result = frames.take_depth(depth, "nyu_release")
    assert result.shape == (228, 304)
    np.testing.assert_array_equal(result, frames.take(depth, "nyu_release"))


def test_holes_never_mix_into_resized_depth():
    depth = np.full((480, 640), 5.0, np.float32)
    depth[200:204, 300:304] = 0
    result = frames.take_depth(depth, "nyu_release")
    assert set(np.unique(result)) == {0, 5}
    assert (result == 0).sum() >= 4


def test_nearest_resize():
    depth = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(frames.resize_nearest(depth, (3, 4)), depth)
    doubled = frames.resize_nearest(depth, (6, 8))
    np.testing.assert_array_equal(doubled, depth.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(frames.resize_nearest(doubled, (3, 4)), depth)


def test_the_robotcar_crop_keeps_the_top():
    image = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), np.uint8)
    np.testing.assert_array_equal(frames.take(image, "robotcar"), image[:768])
    assert frames.frame_size("robotcar", (960, 1280)) == (768, 1280)
    with pytest.raises(ValueError, match="960x1280, not 900x1280"):
        frames.take(image[:900], "robotcar")


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (10, 11), (6, 9)])
def test_a_quarter_is_every_fourth_pixel(size):
    array = np.arange(size[0] * size[1]).reshape(size)
    quarter = frames.quarter(array)
    assert quarter.shape == tuple(round(side / 4) for side in size)  # as OpenCV rounds
    for row, column in np.ndindex(quarter.shape):
        assert quarter[row, column] == array[4 * row, 4 * column]


def kitti_background(depth):
    """The devkit's gap filling, pixel by pixel."""
    depth = depth.copy()
    columns = depth.shape[1]
    for row in depth:
        known = np.flatnonzero(row)
        for left, right in itertools.pairwise(known):
            row[left + 1 : right] = min(row[left], row[right])
        if known.size:
            row[: known[0]], row[known[-1] + 1 :] = row[known[0]], row[known[-1]]
    for column in range(columns):
        known = np.flatnonzero(depth[:, column])
        if known.size:
            depth[: known[0], column] = depth[known[0], column]
            depth[known[-1] + 1 :, column] = depth[known[-1], column]
    return depth


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.9, 1.0])
def test_gaps_are_filled_as_in_the_devkit(share):
    generator = np.random.default_rng(3)
    depth = generator.uniform(1, 9, (12, 17)) * (generator.random((12, 17)) < share)
    before = depth.copy()
    np.testing.assert_array_equal(frames.fill_background(depth), kitti_background(depth))
    np.testing.assert_array_equal(depth, before)
