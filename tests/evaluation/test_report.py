from diffdepth_jax.evaluation import protocols, report


def result(protocol, **changes):
    return {
        "protocol": protocol.name,
        "options": protocol.options | {"flip_tta": True},
        "num_images": 652,
        "num_skipped": 45,
        "num_nonfinite": 0,
        "num_clipped": 0,
        "metrics": {"abs_rel": 0.0623, "mae": 1.5, "delta1": 0.96},
        "baseline": {"abs_rel": 0.391, "mae": 4.0, "delta1": 0.5},
        "reported": [vars(reported) for reported in protocol.reported],
    } | changes


def test_the_papers_numbers_stand_beside_ours_and_are_marked():
    lines = report.table(result(protocols.get("kitti_eigen"))).splitlines()
    assert "652 images, 45 skipped" in lines[0]
    assert "crop=garg, crop_reference=kb" in lines[1] and "flip_tta=True" in lines[1]
    assert lines[2].split() == ["ours", "median", "map", "paper*"]
    assert lines[3].split() == ["abs_rel", "0.0623", "0.3910", "0.0500"]
    assert lines[4].split() == ["mae", "1.5000", "4.0000"]
    assert lines[-1].startswith("* DiffusionDepth paper") and lines[-1].endswith(
        "not measured here"
    )
    assert {line.index(".") for line in lines[3:6]} == {lines[3].index(".")}


def test_no_baseline_and_bad_predictions():
    text = report.table(
        result(protocols.get("release"), baseline={}, num_nonfinite=7, num_clipped=3)
    )
    assert "median map" not in text
    assert "7 were predicted NaN or infinite and 3 outside the range" in text
    assert "README*" in text
