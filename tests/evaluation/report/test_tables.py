import dataclasses

from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.report import papers, tables


def result(protocol, **changes):
    return {
        "protocol": protocol.name,
        "options": protocol.options | {"flip_tta": True},
        "num_images": 652,
        "num_skipped": 45,
        "num_unreadable": 0,
        "unreadable": [],
        "num_nonfinite": 0,
        "num_clipped": 0,
        "num_zero": 0,
        "metrics": {"abs_rel": 0.0623, "mae": 1.5, "delta1": 0.96},
        "baseline": {"abs_rel": 0.391, "mae": 4.0, "delta1": 0.5},
        "conditions": {},
        "classes": {},
        "comparisons": {},
        "reported": [dataclasses.asdict(reported) for reported in papers.of(protocol)],
        "not_comparable": [],
    } | changes


def test_published_numbers_are_listed_next_to_ours_and_marked():
    lines = tables.table(result(protocols.get("kitti_eigen"))).splitlines()
    assert "652 images, 45 skipped" in lines[0] and "readable" not in lines[0]
    assert "crop=garg, crop_reference=kb" in lines[1] and "flip_tta=True" in lines[1]
    assert lines[2].split() == ["ours", "median", "map", "paper*"]
    assert lines[3].split() == ["abs_rel", "0.0623", "0.3910", "0.0500"]
    assert lines[4].split() == ["mae", "1.5000", "4.0000"]
    assert lines[-1].startswith("* paper: DiffusionDepth paper")
    assert lines[-1].endswith("published, not measured here")
    assert {line.index(".") for line in lines[3:6]} == {lines[3].index(".")}


def test_no_baseline_and_bad_predictions():
    text = tables.table(
        result(
            protocols.get("release"), baseline={}, num_nonfinite=7, num_clipped=3, num_unreadable=2
        )
    )
    assert "median map" not in text
    assert "7 scored pixels were predicted as NaN or infinite and 3 outside the range" in text
    assert "README*" in text and "2 not readable" in text


def test_metrics_that_some_images_lack_are_reported():
    fewer = {"boundary_f1_1.20": 630, "boundary_f1_1.25": 630, "rank_correlation": 650}
    text = tables.table(result(protocols.get("dense"), num_images_of=fewer))
    assert "only 630 images have boundary_f1_1.20, boundary_f1_1.25\n" in text + "\n"
    assert "only 650 images have rank_correlation" in text


def test_conditions_have_their_own_table():
    protocol = protocols.get("nuscenes")
    groups = {
        name: {"num_images": 3, "metrics": {"abs_rel": value}, "baseline": {"abs_rel": 0.5}}
        for name, value in (("day-clear", 0.1234), ("night", 0.2345))
    }
    control = {
        "path": "control/metrics.json",
        "num_images": 600,
        "metrics": {"abs_rel": 0.07},
        "conditions": {"night": {"num_images": 3, "metrics": {"abs_rel": 0.25}}},
        "classes": {},
        "differences": ["options.flip_tta: True -> False"],
    }
    text = tables.table(result(protocol, conditions=groups, comparisons={"control": control}))
    lines = [line.split() for line in text.splitlines()]
    assert lines[2] == ["ours", "median", "map", "control"]  # nobody reported the overall figure
    assert lines[3] == ["abs_rel", "0.0623", "0.3910", "0.0700"]
    start = lines.index(["abs_rel", "day-clear", "(3)", "night", "(3)"])
    assert lines[start + 1 : start + 5] == [
        ["ours", "0.1234", "0.2345"],
        ["median", "map", "0.5000", "0.5000"],
        ["control", "0.2500"],
        ["Depth", "Anything", "before*", "0.1370", "0.2910"],
    ]
    assert "control was scored on 600 images" in text
    assert "control used other options (ours -> theirs): options.flip_tta: True -> False" in text


def test_numbers_that_are_not_comparable_are_set_apart():
    protocol = protocols.get("kitti_official")
    (reported,) = papers.of(protocol)
    other = dataclasses.asdict(reported) | {"differences": ["max_depth=50"]}
    text = tables.table(result(protocol, reported=[], not_comparable=[other]))
    assert "0.0410" not in text
    assert text.splitlines()[-1] == (
        "not comparable, because evaluated with max_depth=50: DiffusionDepth paper (Duan, Guo, "
        "Zhu; ECCV 2024), KITTI official 0-50 m: paper 0-50 m: abs_rel 0.041, rmse 1.418"
    )
