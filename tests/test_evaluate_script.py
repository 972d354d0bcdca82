"""`evaluate.py` as a process."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "evaluate.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def num_valid(workdir):
    with open(workdir / "per_image.csv", newline="") as file:
        return {row["id"]: int(row["num_valid"]) for row in csv.DictReader(file)}


@pytest.fixture
def folders(tmp_path):
    """Two KITTI-sized frames, predicted 10% too far."""
    predicted, measured = tmp_path / "predicted", tmp_path / "measured"
    predicted.mkdir(), measured.mkdir()
    depth = np.random.default_rng(0).integers(256, 70 * 256, (376, 1241)).astype(np.uint16)
    for name in ("0000000001", "0000000002"):
        Image.fromarray(depth).save(measured / f"{name}.png")
        np.save(predicted / f"{name}.npy", (depth / 256 * 1.1).astype(np.float32))
    return predicted, measured


@pytest.mark.parametrize("kind", ["full", "kb"])
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_real_frames_against_themselves(shared, tmp_path, kind, suffix):
    folder = (
        shared / "data/kitti_depth/val/2011_09_26_drive_9999_sync/proj_depth/groundtruth/image_02"
    )
    expected = {
        "full": {"0000000005": 87504, "0000000050": 94140, "0000000100": 82576},
        "kb": {"0000000005": 82930, "0000000050": 89864, "0000000100": 79635},
    }[kind]
    predicted = folder
    if suffix == ".npy":
        predicted = tmp_path / "predicted"
        predicted.mkdir()
        for path in folder.glob("*.png"):
            depth = np.asarray(Image.open(path)).astype(np.float32) / 256
            np.save(predicted / f"{path.stem}.npy", depth)
    done = run(
        "--protocol=kitti_eigen",
        f"--crop_reference={kind}",
        f"--predictions={predicted}",
        f"--ground_truth={folder}",
        f"--workdir={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    assert result["metrics"]["abs_rel"] == 0 and result["metrics"]["delta1"] == 1
    assert result["options"]["crop_reference"] == kind
    assert num_valid(tmp_path / "out") == expected


def test_real_nyu_frames_in_millimetres(shared, tmp_path):
    pattern = shared / "data/nyu_depth_v2/sync/basement_0001a/sync_depth_*.png"
    done = run(
        "--protocol=nyu",
        f"--predictions={pattern}",
        f"--ground_truth={pattern}",
        "--png_scale=1000",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert list(num_valid(tmp_path).values()) == [221809, 225022, 202035]


def test_the_table_and_the_files(folders, tmp_path):
    predicted, measured = folders
    done = run(
        "--protocol=kitti_eigen",
        f"--predictions={predicted}",
        f"--ground_truth={measured}",
        f"--workdir={tmp_path / 'out'}",
        "--crop=eigen",
        "--max_depth=50",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    assert result["protocol"] == "kitti_eigen"
    assert result["options"]["crop"] == "eigen" and result["options"]["max_depth"] == 50
    assert (result["num_images"], result["num_skipped"]) == (2, 0)
    assert result["metrics"]["delta1"] == 1
    assert 0.09 < result["metrics"]["abs_rel"] < 0.1  # 10%, less where the cap clips it
    lines = done.stdout.splitlines()
    assert ["ours", "paper*"] in [line.split() for line in lines]
    assert f"{result['metrics']['abs_rel']:.4f}" in done.stdout
    assert "(max_depth=80)" in lines[-1]


def test_mistakes_are_told_in_one_line_and_leave_nothing(folders, tmp_path):
    predicted, measured = folders
    scored = [f"--predictions={predicted}", f"--ground_truth={measured}"]
    out = [f"--workdir={tmp_path / 'out'}"]
    Image.fromarray(np.zeros((376, 1241), np.uint8)).save(tmp_path / "0000000001.png")
    for arguments, message in [
        ([], "Exactly one of (config, predictions)"),
        (scored, "--predictions goes with --ground_truth, --protocol, --workdir"),
        ([*scored, *out, "--protocol=kitti_eigne"], "did you mean 'kitti_eigen'?"),
        ([*scored, *out, "--protocol=kitti_eigen", "--crop=grag"], "crop is 'grag'"),
        ([*scored, *out, "--protocol=nyu"], "image '0000000001': the NYU eigen crop"),
        ([*scored, *out, "--protocol=nyu", "--flip_tta"], "no option 'flip_tta'"),
        ([*scored[:1], f"--ground_truth={tmp_path}", *out, "--protocol=release"], "0000000002"),
        ([f"--predictions={tmp_path}/*1.png", f"--ground_truth={measured}/*1.png", *out,
          "--protocol=release"], "0000000001.png is not a 16-bit depth map"),
        ([*scored[:1], "--ground_truth=absent", *out, "--protocol=nyu"], "absent is neither"),
        (["--config=absent.py", "--checkpoint=absent"], "there is no file absent.py"),
    ]:  # fmt: skip
        done = run(*arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "out").exists()
