import pytest

from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.protocols import PROTOCOLS
from diffdepth_jax.evaluation.report import papers


def test_published_numbers_carry_their_source():
    (reported,) = papers.of(PROTOCOLS["kitti_eigen"])
    assert "DiffusionDepth paper" in reported.source
    assert reported.metrics == {"abs_rel": 0.050, "rmse": 2.016, "delta1": 0.977}
    assert papers.of(PROTOCOLS["kitti_eigen_50m"]) == ()
    for name, found in papers.REPORTED.items():
        protocol = PROTOCOLS[name]
        for reported in found:
            parts = [reported.metrics, *reported.groups.values()]
            assert set().union(*parts) <= set(protocol.metrics)
            assert set(reported.options) <= {"depth", "cameras", *protocol.options}
            groups = {"ToM", "Other"} if protocol.classes else set(protocol.conditions)
            assert set(reported.groups) <= groups


def differences(name, num_images=None, dataset=None, **options):
    protocol = protocols.get(name, **options)
    reported = papers.of(protocol)[0]
    stated = {"dataset": dataset or reported.dataset}
    return reported.differences(protocol, stated, num_images or reported.num_images)


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("kitti_eigen", {}, []),
        ("kitti_eigen", {"max_depth": 50.0}, ["max_depth=80"]),
        ("kitti_eigen", {"alignment": "median"}, ["alignment=none"]),
        ("kitti_eigen", {"crop": "eigen"}, ["crop=garg"]),
        ("kitti_eigen", {"crop_reference": "full"}, ["crop_reference=kb"]),
        ("kitti_eigen", {"clip_max": 60.0}, ["clip_max=none"]),
        ("kitti_eigen", {"fill_zeros": "background"}, ["fill_zeros=none"]),
        ("kitti_eigen", {"num_images": 651}, ["652 images"]),
        ("kitti_eigen", {"num_images": 697}, ["652 images"]),
        ("kitti_eigen", {"prediction_frame": "full"}, []),
        ("kitti_official", {}, ["max_depth=50"]),
        ("kitti_official", {"max_depth": 50.0}, []),
        ("nyu", {"crop": "none", "num_images": 10}, ["crop=eigen", "654 images"]),
        ("nuscenes", {}, ["alignment=lsq_depth or lsq_disparity or lsq_disparity_near"]),
        ("nuscenes", {"alignment": "lsq_disparity"}, []),
        ("nuscenes", {"alignment": "lsq_depth", "num_images": 602}, ["6019 images"]),
        (
            "nuscenes",
            {"alignment": "lsq_disparity", "disparity_floor": 0.1},
            ["disparity_floor=0.0125"],
        ),
        (
            "nuscenes",
            {"alignment": "lsq_disparity", "fit_pixels": "positive"},
            ["fit_pixels=none"],
        ),
        ("booster", {}, []),
        ("cleargrasp", {"dataset": "nyu"}, ["dataset=cleargrasp"]),
    ],
)
def test_numbers_are_comparable_only_under_the_same_conditions(name, options, expected):
    assert differences(name, **options) == expected


@pytest.mark.parametrize(
    "name, changes, option, used, other, shown",
    [
        ("kitti_eigen", {}, "depth", "groundtruth", "velodyne_raw", "groundtruth"),
        (
            "nuscenes",
            {"alignment": "lsq_depth"},
            "cameras",
            ["CAM_FRONT"],
            ["CAM_BACK"],
            "CAM_FRONT",
        ),
    ],
)
def test_a_stated_choice_of_ground_truth_must_be_the_published_one(
    name, changes, option, used, other, shown
):
    protocol = protocols.get(name, **changes)
    for reported in papers.of(protocol):
        unstated = {"dataset": reported.dataset}
        expected = reported.differences(protocol, unstated, reported.num_images)
        for value, more in ((used, []), (other, [f"{option}={shown}"])):
            stated = unstated | {option: value}
            found = reported.differences(protocol, stated, reported.num_images)
            assert sorted(found) == sorted([*expected, *more])


def test_an_unknown_number_of_images_never_matches():
    (reported,) = papers.of(PROTOCOLS["release"])
    options = {"dataset": "kitti", "depth": "groundtruth"}
    found = reported.differences(PROTOCOLS["release"], options, 1000)
    assert found == ["an unknown number of images"]
