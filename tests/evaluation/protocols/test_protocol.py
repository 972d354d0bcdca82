import math

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation import metrics, protocols
from diffdepth_jax.evaluation.protocols import PROTOCOLS, frames

# Pixels and mean depth of three real frames, from BTS's and AdaBins's definitions.
KITTI = {
    "0000000005": {
        ("none", "full"): 90728,
        ("garg", "full"): (87504, 17.4500),
        ("eigen", "full"): 82741,
        ("garg", "kb"): (82930, 16.3860),
    },
    "0000000050": {
        ("none", "full"): 96063,
        ("garg", "full"): (94140, 18.1733),
        ("eigen", "full"): 87106,
        ("garg", "kb"): (89864, 17.2152),
    },
    "0000000100": {
        ("none", "full"): 85094,
        ("garg", "full"): (82576, 17.3516),
        ("eigen", "full"): 75709,
        ("garg", "kb"): (79635, 16.5490),
    },
}
KITTI_MEASURED = {"0000000005": 90839, "0000000050": 96131, "0000000100": 85098}
NYU = {"00000": (221809, 3.5762), "00050": (225022, 3.4836), "00100": (202035, 2.7923)}


def kitti_depth(shared, name):
    folder = shared / "data/kitti_depth/val/2011_09_26_drive_9999_sync/proj_depth/groundtruth"
    return np.asarray(Image.open(folder / f"image_02/{name}.png")) / 256


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", KITTI)
def test_pixel_counts_and_means_of_real_kitti_frames(shared, name, dtype):
    depth = kitti_depth(shared, name).astype(dtype)
    for (crop, reference), expected in KITTI[name].items():
        score = protocols.get("kitti_eigen", crop=crop, crop_reference=reference).score(
            depth, depth
        )
        count, mean = expected if isinstance(expected, tuple) else (expected, None)
        assert score.num_valid == count
        assert mean is None or round(score.mean_depth, 4) == mean
        assert score.metrics["abs_rel"] == 0 and score.metrics["delta1"] == 1
    for uncapped in ("release", "kitti_official"):
        assert PROTOCOLS[uncapped].score(depth, depth).num_valid == KITTI_MEASURED[name]


@pytest.mark.parametrize("name", NYU)
def test_pixel_counts_and_means_of_real_nyu_frames(shared, name):
    path = shared / f"data/nyu_depth_v2/sync/basement_0001a/sync_depth_{name}.png"
    depth = np.asarray(Image.open(path)) / 1000
    score = PROTOCOLS["nyu"].score(depth, depth)
    assert (score.num_valid, round(score.mean_depth, 4)) == NYU[name]


@pytest.fixture
def frame():
    """A prediction and its ground truth, 375x1242, a few pixels measured."""
    generator = np.random.default_rng(0)
    depth = generator.uniform(0.5, 100, (375, 1242))
    depth[generator.random(depth.shape) < 0.9] = 0
    return generator.uniform(1, 90, depth.shape), depth


@pytest.mark.parametrize("crop", ["garg", "eigen"])
@pytest.mark.parametrize("reference", ["kb", "full"])
def test_a_full_prediction_and_its_kb_crop_score_the_same(frame, reference, crop):
    prediction, depth = frame
    protocol = protocols.get("kitti_eigen", crop_reference=reference, crop=crop)
    full = protocol.score(prediction, depth)
    cropped = protocol.score(frames.take(prediction, "kb"), depth)
    assert full == cropped
    assert full.num_nonfinite == 0 and full.num_clipped > 0


def test_metrics_cover_the_cropped_valid_pixels(frame):
    prediction, depth = frame
    score = protocols.get("kitti_eigen", crop_reference="full", max_depth=50).score(
        prediction, depth
    )
    rows, columns = slice(153, 371), slice(44, 1197)
    target = depth[rows, columns]
    mask = (target > 1e-3) & (target < 50)
    expected = metrics.compute(np.clip(prediction[rows, columns], 1e-3, 50), target, mask)
    assert score.metrics == expected
    assert score.num_valid == mask.sum()
    assert score.num_clipped == (prediction[rows, columns][mask] > 50).sum()


def test_pixels_outside_a_kb_crop_count_as_not_predicted(frame):
    prediction, depth = frame
    protocol = protocols.get("kitti_eigen", crop_reference="full", crop="none")
    score = protocol.score(frames.take(prediction, "kb"), depth)
    inside = frames.take(depth, "kb")
    assert score.num_valid - score.num_nonfinite == ((inside > 1e-3) & (inside < 80)).sum()
    assert score.num_nonfinite > 0


def test_the_input_of_a_model():
    image = np.random.default_rng(0).integers(0, 256, (375, 1242, 3), np.uint8)
    for reference in ("kb", "full"):
        prepared = protocols.get("kitti_eigen", crop_reference=reference).prepare(image)
        np.testing.assert_array_equal(prepared, image[23:, 13:1229])
    for name in ("release", "kitti_official", "nyu"):
        assert PROTOCOLS[name].prepare(image) is image
    assert PROTOCOLS["nyu_release"].prepare(image[:, :500]).shape == (228, 304, 3)
    with pytest.raises(ValueError, match="100x100 is smaller"):
        PROTOCOLS["kitti_eigen"].prepare(image[:100, :100])


def test_nyu_release_scores_full_and_model_sized_predictions():
    generator = np.random.default_rng(0)
    depth = generator.uniform(0.5, 12, (480, 640)).astype(np.float32)
    small = frames.take(depth, "nyu_release")
    for prediction in (depth, small):
        score = PROTOCOLS["nyu_release"].score(prediction, depth)
        assert score.num_valid == 228 * 304
        assert score.metrics["abs_rel"] == 0


@pytest.mark.parametrize("reference", ["kb", "full"])
def test_mismatched_sizes_are_an_error(frame, reference):
    _, depth = frame
    protocol = protocols.get("kitti_eigen", crop_reference=reference)
    for size in ((370, 1226), (192, 640), (1242, 375)):
        with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} .*375x1242.* or 352x1216"):
            protocol.score(np.ones(size), depth)


@pytest.mark.parametrize("reference", ["kb", "full"])
@pytest.mark.parametrize(
    "shown, size, meant",
    [
        ("by_size", (192, 640), "full"),
        ("full", (192, 640), "full"),
        ("kb", (192, 640), "kb"),
        ("by_size", (352, 1216), "kb"),
        ("full", (352, 1216), "full"),
        ("kb", (375, 1242), "kb"),
    ],
)
def test_a_prediction_is_resized_to_the_frame_it_covers(reference, shown, size, meant):
    depth = np.full((375, 1242), 5.0)
    protocol = protocols.get(
        "kitti_eigen",
        crop_reference=reference,
        prediction_frame=shown,
        resize_prediction="bilinear",
    )
    ramp = np.linspace(1, 10, size[1])[None, :].repeat(size[0], axis=0)
    exact = {"full": (375, 1242), "kb": (352, 1216)}[meant]
    expected = np.linspace(1, 10, exact[1])[None, :].repeat(exact[0], axis=0)
    resized = protocol.score(ramp, depth).metrics
    wanted = protocols.get("kitti_eigen", crop_reference=reference).score(expected, depth).metrics
    for name in ("abs_rel", "rmse", "silog"):
        assert resized[name] == pytest.approx(wanted[name], rel=1e-9)
    assert protocol.options["prediction_frame"] == shown
    if size != exact:
        with pytest.raises(ValueError, match=f"needs predictions of .*{exact[0]}x{exact[1]}"):
            protocol.with_options(resize_prediction="none").score(
                ramp[:, :-1] if shown == "by_size" else ramp, depth
            )


def test_nonfinite_and_clipped_predictions_are_counted():
    depth = np.full((2, 4), 5.0)
    depth[1] = 0
    prediction = np.array([[np.nan, np.inf, -np.inf, 100.0], [np.nan] * 4])
    score = protocols.get("kitti_official", max_depth=80).score(prediction, depth)
    assert (score.num_valid, score.num_nonfinite, score.num_clipped) == (4, 3, 1)
    assert score.metrics["mae"] == pytest.approx((2 * (5 - 1e-3) + 2 * 75) / 4)


def test_an_image_without_a_valid_pixel_has_no_metrics():
    score = PROTOCOLS["release"].score(np.ones((2, 2)), np.zeros((2, 2)))
    assert score.num_valid == 0 and score.metrics == {} and math.isnan(score.mean_depth)


def test_relative_predictions_are_aligned_before_clipping():
    depth = np.random.default_rng(0).uniform(1, 70, (4, 6))
    for alignment, prediction in {
        "median": depth / 300,
        "lsq_depth": depth / 300 - 2,
        "lsq_disparity": 30 / depth + 4,
    }.items():
        score = protocols.get("release", alignment=alignment).score(prediction, depth)
        assert score.metrics["abs_rel"] < 1e-9
        assert score.num_clipped == 0


def test_the_disparity_floor_is_the_cap_unless_given():
    floors = [
        protocols.get(name, alignment="lsq_disparity", **options).options["disparity_floor"]
        for name, options in [
            ("kitti_eigen", {}),
            ("release", {}),
            ("kitti_eigen", {"disparity_floor": 1e-3}),
        ]
    ]
    assert floors == [1 / 80, 1e-3, 1e-3]
    assert PROTOCOLS["kitti_eigen"].options["disparity_floor"] is None


def test_options_are_complete_and_no_cap_is_none():
    assert protocols.get("kitti_eigen", crop_reference="full", max_depth=50.0).options == {
        "input": "kb",
        "input_size": None,
        "resize_input": "none",
        "crop": "garg",
        "crop_reference": "full",
        "min_depth": 1e-3,
        "max_depth": 50.0,
        "clip_min": None,
        "clip_max": None,
        "predicts": "depth",
        "alignment": "none",
        "fit_pixels": None,
        "disparity_floor": None,
        "prediction_frame": "by_size",
        "resize_prediction": "none",
        "fill_zeros": None,
        "metric_set": "all",
    }
    assert PROTOCOLS["release"].options["max_depth"] is None
    assert protocols.get("kitti_eigen", max_depth=math.inf).options["max_depth"] is None
    assert PROTOCOLS["kitti_eigen_50m"].options["max_depth"] == 50


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("kitti_eigne", {}, "did you mean 'kitti_eigen'"),
        ("kitti_eigen", {"crop": "grag"}, "crop is 'grag'; it must be one of none, garg, eigen"),
        ("nyu", {"crop": "garg"}, "must be one of none, eigen"),
        ("release", {"crop": "eigen"}, "must be one of none"),
        ("nyu", {"crop_reference": "kb"}, "must be one of full"),
        ("kitti_eigen", {"max_depth": 0.0}, "0.001..0.0 m must be positive and increasing"),
        ("kitti_eigen", {"alignment": "mean"}, "alignment is 'mean'"),
        ("kitti_eigen", {"disparity_floor": 0.0}, "must be above 0"),
        ("kitti_eigen", {"disparity_floor": 1e-3}, "needs alignment=lsq_disparity, not none"),
        ("nyu", {"prediction_frame": "kb"}, "must be one of by_size, full"),
        ("kitti_eigen", {"crops": "garg"}, "no option 'crops'"),
        ("kitti_eigen", {"clip_max": 1e-3}, "clipped to 0.001..0.001 m"),
        ("kitti_eigen", {"clip_min": 0.0}, "must be positive"),
        ("kitti_eigen", {"fit_pixels": "positive"}, "needs alignment=lsq_disparity, not none"),
        ("cleargrasp", {"fit_pixels": "all"}, "must be one of valid, positive"),
        ("cleargrasp", {"fill_zeros": "background"}, "predicts=depth"),
    ],
)
def test_unknown_options_are_an_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        protocols.get(name, **options)


def test_robotcar_scores_the_top_rows(shared):
    path = next((shared / "data/robotcar/stereo_left_rgb").glob("*.png"))
    image = np.asarray(Image.open(path).convert("RGB"))
    protocol = PROTOCOLS["robotcar"]
    prepared = protocol.prepare(image)
    assert prepared.shape == (320, 544, 3)
    expected = Image.fromarray(image[:768]).resize((544, 320), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(prepared, np.asarray(expected))
    depth = np.full((960, 1280), 60.0)  # beyond the cap
    depth[700:768, 100:200], depth[768:] = 10, 10
    score = protocol.score(np.full((320, 544), 12.0), depth)
    assert score.num_valid == 68 * 100
    assert score.metrics["abs_rel"] == pytest.approx(0.2)
    whole = protocol.score(np.full((960, 1280), 12.0), depth)
    assert whole.num_valid == score.num_valid
    assert protocols.get("robotcar", resize_input="none").prepare(image).shape == (768, 1280, 3)


@pytest.mark.parametrize("resize", ["none", "bilinear"])
def test_robotcar_recognises_maps_of_the_top_rows(resize):
    depth = np.linspace(2, 45, 960)[:, None].repeat(1280, axis=1)
    protocol = protocols.get("robotcar", resize_prediction=resize)
    for rows in (768, 960):
        assert protocol.score(depth[:rows], depth).metrics["abs_rel"] == pytest.approx(0, abs=1e-9)


def md4all(prediction, depth):
    """Metrics of md4all's `_gt` evaluation, one lidar point at a time."""
    height, width = depth.shape
    rows, columns = prediction.shape
    pairs = []
    for row, column in zip(*np.nonzero(depth), strict=True):
        target = float(depth[row, column])
        if not 0.1 < target < 80:
            continue
        y, x = row * (rows - 1) / (height - 1), column * (columns - 1) / (width - 1)
        i, j = min(int(y), rows - 2), min(int(x), columns - 2)
        v, u = y - i, x - j
        top = (1 - u) * prediction[i, j] + u * prediction[i, j + 1]
        bottom = (1 - u) * prediction[i + 1, j] + u * prediction[i + 1, j + 1]
        pairs.append(((1 - v) * top + v * bottom, target))
    middle = (len(pairs) - 1) // 2
    scale = sorted(t for _, t in pairs)[middle] / sorted(p for p, _ in pairs)[middle]
    pairs = [(min(max(p * scale, 0.1), 80), t) for p, t in pairs]
    n = len(pairs)
    return n, {
        "abs_rel": sum(abs(p - t) / t for p, t in pairs) / n,
        "sq_rel": sum((p - t) ** 2 / t for p, t in pairs) / n,
        "rmse": math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        "rmse_log": math.sqrt(sum((math.log(p) - math.log(t)) ** 2 for p, t in pairs) / n),
        "delta1": sum(max(p / t, t / p) < 1.25 for p, t in pairs) / n,
    }


def test_a_real_nuscenes_frame_as_md4all_scores_it(shared):
    from diffdepth_jax.data.sources import nuscenes

    sample = nuscenes.source("mini_train", shared / "data/nuscenes")[0]
    protocol = protocols.get("nuscenes", alignment="median_low")
    assert protocol.prepare(sample["image"]).shape == (320, 576, 3)
    ramp = 90 / np.linspace(1, 30, 320)[:, None] * np.linspace(0.3, 0.5, 576)[None, :]
    prediction = ramp * np.exp(np.random.default_rng(0).normal(0, 0.1, ramp.shape))
    count, expected = md4all(prediction, sample["depth"])
    score = protocol.score_sample(prediction, sample)
    assert score.num_valid == count > 1000
    for name, value in expected.items():
        assert score.metrics[name] == pytest.approx(value, rel=1e-9), name


def test_protocols_know_which_of_them_share_a_model_input():
    keys = {name: protocol.input_key for name, protocol in PROTOCOLS.items()}
    assert keys["kitti_eigen"] == keys["kitti_eigen_50m"] == ("kb", None)
    assert keys["nyu"] == keys["release"] == keys["booster"] == ("full", None)
    assert keys["nuscenes"] == ("full", (320, 576)) and keys["robotcar"] == ("robotcar", (320, 544))
    assert protocols.get("nuscenes", resize_input="none").input_key == ("full", None)
    with pytest.raises(ValueError, match="resize_input is 'lanczos'; it must be one of none"):
        protocols.get("nyu", resize_input="lanczos")


@pytest.mark.parametrize(
    "name, low, high, alignment, metric_set",
    [
        ("kitti_eigen", 1e-3, 80, "none", "all"),
        ("kitti_eigen_50m", 1e-3, 50, "none", "all"),
        ("kitti_official", 1e-3, math.inf, "none", "all"),
        ("kitti_benchmark", 1e-3, math.inf, "none", "kitti_benchmark"),
        ("nyu", 1e-3, 10, "none", "all"),
        ("nyu_release", 1e-4, math.inf, "none", "all"),
        ("release", 1e-4, math.inf, "none", "all"),
        ("nuscenes", 0.1, 80, "none", "all"),
        ("robotcar", 0.1, 50, "none", "all"),
        ("drivingstereo", 1e-3, math.inf, "none", "all"),
        ("booster", 1e-3, 10, "lsq_disparity_near", "millimetres"),
        ("cleargrasp", 1e-3, 10, "lsq_disparity", "millimetres"),
        ("dense", 1e-3, 80, "none", "all"),
    ],
)
def test_the_table_of_protocols(name, low, high, alignment, metric_set):
    protocol = PROTOCOLS[name]
    assert (protocol.min_depth, protocol.max_depth) == (low, high)
    assert (protocol.alignment, protocol.metric_set) == (alignment, metric_set)


def test_clipping_is_independent_of_masking():
    """Monodepth2 on `eigen_benchmark`: all measured pixels count, predictions stop at 80 m."""
    protocol = protocols.get(
        "kitti_official", max_depth=math.inf, clip_max=80.0, alignment="median"
    )
    depth = np.array([[0.0, 5.0, 90.0, 120.0]])
    prediction = np.array([[7.0, 5.0, 100.0, 90.0]])
    score = protocol.score(prediction, depth)
    assert score.num_valid == 3 and score.num_clipped == 2
    assert score.metrics["mae"] == pytest.approx((0 + 10 + 40) / 3)
    assert protocol.options["clip_max"] == 80 and protocol.options["max_depth"] is None
    floor = protocols.get("release", alignment="lsq_disparity", clip_max=80.0)
    assert floor.options["disparity_floor"] == 1 / 80


def test_a_fit_to_positive_disparities_only():
    depth = np.array([[1.0, 2.0, 4.0, 8.0, 8.0]])
    prediction = 2 / depth - 0.1
    prediction[0, -1] = -5
    options = {"alignment": "lsq_disparity", "predicts": "disparity"}
    fitted = protocols.get("release", fit_pixels="positive", **options)
    compared = fitted.compare(prediction, {"depth": depth})
    np.testing.assert_allclose(compared.prediction, [[1, 2, 4, 8, 1000]], rtol=1e-9)
    everything = protocols.get("release", **options).score(prediction, depth)
    assert everything.metrics["abs_rel"] > fitted.score(prediction, depth).metrics["abs_rel"]


@pytest.mark.parametrize(
    "alignment, predicts, fit_pixels",
    [
        ("lsq_disparity", "depth", "valid"),
        ("lsq_disparity", "depth", "positive"),
        ("lsq_disparity_near", "depth", "valid"),
        ("lsq_depth", "disparity", "valid"),
    ],
)
def test_a_pixel_without_an_inverse_takes_no_part_in_a_fit(alignment, predicts, fit_pixels):
    depth = np.random.default_rng(0).uniform(1, 70, (6, 8))
    prediction = depth / 2 if predicts == "depth" else 2 / depth
    prediction[2, 3] = 0
    options = {"alignment": alignment, "predicts": predicts, "fit_pixels": fit_pixels}
    protocol = protocols.get("release", **options)
    compared = protocol.compare(prediction, {"depth": depth})
    others = prediction > 0
    np.testing.assert_allclose(compared.prediction[others], depth[others], rtol=1e-9)
    assert compared.valid_mask.all()  # it is still scored
    if fit_pixels == "valid":  # a constant is aligned to the mean
        assert np.ptp(protocol.compare(0 * depth, {"depth": depth}).prediction) == 0
    else:
        with pytest.raises(DataError, match="there are 0"):
            protocol.compare(0 * depth, {"depth": depth})


def test_half_pixel_resize():
    protocol = protocols.get("drivingstereo", resize_prediction="bilinear_half_pixel")
    prediction = np.array([[1.0, 3.0]])
    compared = protocol.compare(prediction, {"depth": np.ones((1, 4))})
    np.testing.assert_allclose(compared.prediction, [[1, 1.5, 2.5, 3]])  # as in OpenCV
    compared = PROTOCOLS["drivingstereo"].compare(prediction, {"depth": np.ones((1, 4))})
    np.testing.assert_allclose(compared.prediction, [[1, 5 / 3, 7 / 3, 3]])


def test_zeros_are_counted_and_may_be_filled():
    depth = np.full((2, 4), 6.0)
    prediction = np.array([[0.0, 8.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    score = PROTOCOLS["release"].score(prediction, depth)
    assert score.num_zero == 6 and score.num_clipped == 6
    filled = protocols.get("release", fill_zeros="background")
    compared = filled.compare(prediction, {"depth": depth})
    np.testing.assert_array_equal(compared.prediction, [[8, 8, 4, 4]] * 2)
    assert compared.num_zero == 6 and compared.num_clipped == 0
    disparity = protocols.get("release", alignment="lsq_disparity").score(prediction, depth)
    assert disparity.num_zero == 0
