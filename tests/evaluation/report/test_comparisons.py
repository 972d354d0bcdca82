import json

import pytest

from diffdepth_jax.evaluation.protocols import PROTOCOLS
from diffdepth_jax.evaluation.report import comparisons

RELEASE = PROTOCOLS["release"]


def save(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "protocol": "release",
        "options": RELEASE.options,
        "num_images": 4,
        "metrics": {"abs_rel": 0.1},
    } | changes
    path.write_text(json.dumps(result))
    return path


def test_a_result_is_a_file_its_directory_or_a_directory_of_several(tmp_path):
    file = save(tmp_path / "one/metrics.json")
    save(tmp_path / "several/release/metrics.json", metrics={"abs_rel": 0.2})
    compare = {"a": file, "b": file.parent, "c": tmp_path / "several"}
    found = comparisons.read(compare, RELEASE, {})
    assert [found[name]["metrics"]["abs_rel"] for name in "abc"] == [0.1, 0.1, 0.2]
    assert found["a"]["differences"] == [] and found["a"]["conditions"] == {}


def test_different_options_are_named(tmp_path):
    file = save(tmp_path / "metrics.json", options=RELEASE.options | {"flip_tta": False})
    found = comparisons.read({"a": file}, RELEASE.with_options(max_depth=80), {"flip_tta": True})
    assert found["a"]["differences"] == [
        "options.max_depth: 80 -> None",
        "options.flip_tta: True -> False",
    ]


def test_files_that_are_not_results_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        comparisons.read({"a": tmp_path / "absent"}, RELEASE, {})
    no_metrics = b'{"protocol": "release", "options": {}, "num_images": 1, "metrics": [1]}'
    deep = b"[" * 100_000
    edited = [
        save(tmp_path / "edited.json", **changes).read_bytes()
        for changes in (
            {"metrics": {"abs_rel": "0.1"}},
            {"metrics": {"abs_rel": 10**400}},
            {"metrics": {"abs_rel": float("nan")}},
            {"metrics": {"abs_rel": None}},
            {"metrics": {"abs_rel": True}},
            {"num_images": "4"},
            {"num_images": None},
            {"num_images": -1},
            {"options": [1]},
            {"options": None},
            {"conditions": ["night"]},
            {"conditions": {"night": 0.1}},
            {"classes": {"ToM": {"metrics": {"abs_rel": "x"}, "num_images": 1}}},
        )
    ]
    for content in (b"{}", b"[]", b"no json", b"\xff\xfe\x00", no_metrics, deep, *edited):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json is not the metrics\.json"):
            comparisons.read({"a": tmp_path / "a.json"}, RELEASE, {})
    save(tmp_path / "a.json", classes={"ToM": {"metrics": {"mae_mm": 1}, "num_images": 1}})
    found = comparisons.read({"a": tmp_path / "a.json"}, RELEASE, {})
    assert found["a"]["classes"]["ToM"]["metrics"] == {"mae_mm": 1}
    file = save(tmp_path / "metrics.json", protocol="nyu")
    with pytest.raises(ValueError, match="under the protocol nyu; it cannot be compared"):
        comparisons.read({"a": file}, RELEASE, {})


def test_names_and_paths():
    assert comparisons.parse(["a=b/c.json", "x y=d=e"]) == {"a": "b/c.json", "x y": "d=e"}
    for wrong in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(ValueError, match="NAME=PATH"):
            comparisons.parse(wrong)
