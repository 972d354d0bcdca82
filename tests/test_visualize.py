import sys

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import visualize

GREY = [visualize._INVALID] * 3


def luminance(colours):
    return colours.astype(float) @ [0.299, 0.587, 0.114]


def test_near_is_brighter_than_far_and_no_depth_is_grey():
    depth = np.array([[1.0, 5.0, 20.0, 80.0], [0.0, np.nan, np.inf, -1.0]], np.float32)
    colours = visualize.colour_depth(depth, 1.0, 80.0)
    assert colours.dtype == np.uint8 and colours.shape == (2, 4, 3)
    assert (np.diff(luminance(colours[0])) < 0).all()
    assert (colours[1] == GREY).all()


def test_colours_repeat_outside_the_scale_and_do_not_depend_on_a_factor():
    depth = np.array([[0.5, 1.0, 10.0, 100.0]], np.float32)
    colours = visualize.colour_depth(depth, 1.0, 10.0)
    assert (colours[0, 0] == colours[0, 1]).all() and (colours[0, 2] == colours[0, 3]).all()
    np.testing.assert_array_equal(visualize.colour_depth(depth * 3, 3.0, 30.0), colours)


def test_a_map_without_depth_is_grey():
    assert (visualize.colour_depth(np.zeros((2, 3), np.float32)) == GREY).all()


def test_large_disparity_is_bright_and_scale_and_shift_do_not_matter():
    disparity = np.array([[0.0, 1.0, 2.0, 4.0, np.nan, np.inf]], np.float32)
    colours = visualize.colour_disparity(disparity)
    assert (np.diff(luminance(colours[0, :4])) > 0).all()
    assert (colours[0, 4:] == GREY).all()
    np.testing.assert_array_equal(visualize.colour_disparity(8 * disparity - 4), colours)
    assert (visualize.colour_disparity(np.full((2, 2), np.nan, np.float32)) == GREY).all()
    constant = visualize.colour_disparity(np.full((2, 2), 3, np.float32))
    assert (constant == constant[0, 0]).all() and (constant != GREY).any()


def test_error_is_white_where_right_red_where_wrong_grey_where_unknown():
    target = np.array([[10.0, 10.0, 0.0]], np.float32)
    colours = visualize.colour_error(
        np.array([[10.0, 16.0, 3.0]], np.float32), target, target > 0
    ).astype(int)
    assert colours[0, 0].min() >= 235
    assert colours[0, 1, 0] > 80 and colours[0, 1, 1] < 40
    assert (colours[0, 2] == GREY).all()


@pytest.fixture
def frames():
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 255, (3, 24, 72, 3), dtype=np.uint8))
    depths = list(generator.uniform(2, 60, (3, 24, 72)).astype(np.float32))
    depths[1][:10] = 0
    return images, depths


def test_spread_is_white_where_samples_agree_and_grey_where_there_is_no_depth():
    unit = np.array([[2.0, 2, 4, 0]])
    painted = visualize.colour_spread(np.array([[0.0, 1, 2, 1]]), unit, maximum=0.5)[0].astype(int)
    assert painted[0].min() > 245  # white
    assert (painted[1] == painted[2]).all()  # the same fraction of the depth
    assert painted[1].sum() < 300 and painted[1].argmin() == 1  # purple
    assert (painted[3] == 128).all()
    spread = np.linspace(0, 1, 500)[None]
    own = visualize.colour_spread(spread, np.ones_like(spread))
    assert (own == visualize.colour_spread(spread, np.ones_like(spread), 0.98)).all()
    flat = visualize.colour_spread(np.zeros((2, 3)), np.ones((2, 3)))
    assert flat.min() > 245


def test_pictures_are_written_atomically_and_without_a_display(tmp_path, frames):
    images, depths = frames
    visualize.save_predictions(
        tmp_path / "predictions.png", images, [d + 1 for d in depths], depths, [0.1, 0.2, 0.3]
    )
    visualize.save_denoising(
        tmp_path / "denoising.png",
        images[0],
        {f"step {step}": depths[0] for step in range(5)},
        np.zeros_like(depths[0]),
    )
    visualize.save_comparison(
        tmp_path / "comparison.png",
        {"clear": images[0], "night": images[1]},
        {"before": depths[:2], "after": depths[1:]},
        depths[:2],
    )
    columns = {"step": [1, 2], "loss": [3.0, 0.01], "l1": [1.0, 1.0], "silog": [0.0, 2.0]}
    visualize.save_curves(tmp_path / "curves.png", columns)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comparison.png",
        "curves.png",
        "denoising.png",
        "predictions.png",
    ]
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.width == 1200 and picture.height > 200
            assert len(np.unique(np.asarray(picture))) > 50
    assert "matplotlib.pyplot" not in sys.modules


def test_predictions_show_every_sample(tmp_path, frames):
    images, depths = frames
    heights = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        visualize.save_predictions(
            path, images[:count], depths[:count], depths[:count], [0.1] * count
        )
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert heights[1] > 2 * heights[0] - 100
