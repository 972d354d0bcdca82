"""`evaluate.py` as a process."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import scripts


def run(*arguments):
    return scripts.run("evaluate.py", *map(str, arguments))


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


CONFIG = """
from ml_collections import ConfigDict

def get_config():
    source = dict(name="kitti", root="{root}", split="val", cameras=("image_02",))
    return ConfigDict(dict(
        num_steps=1,
        batch_size=1,
        model=dict(
            name="diffusion_depth",
            encoder=dict(name="resnet", depths=(1, 1), widths=(4, 8)),
            neck=dict(features=8),
            codec=dict(latent_channels=4),
            denoiser=dict(hidden_features=4, num_groups=2),
            diffusion=dict(num_inference_steps=2),
        ),
        objective=dict(name="self_diffusion"),
        data=dict(train=dict(source=source, augmentation=dict(crop=(16, 32))), evaluation=source),
        evaluation=dict(protocol="kitti_eigen", crop="garg", crop_reference="kb"),
    ))
"""


@pytest.fixture
def untrained_run(tmp_path):
    """A config for three small frames in KITTI's layout, and an untrained run."""
    import jax
    import optax

    from diffdepth_jax import config as config_lib
    from diffdepth_jax import registry
    from diffdepth_jax.training import experiment, state
    from diffdepth_jax.training.checkpoint import Checkpointer

    drive, generator = "2011_09_26_drive_0001_sync", np.random.default_rng(0)
    images = tmp_path / f"kitti/2011_09_26/{drive}/image_02/data"
    depths = tmp_path / f"kitti/val/{drive}/proj_depth/groundtruth/image_02"
    images.mkdir(parents=True), depths.mkdir(parents=True)
    for index in range(3):
        name = f"{index:010d}.png"
        Image.fromarray(generator.integers(0, 256, (24, 48, 3), np.uint8)).save(images / name)
        depth = generator.integers(256, 256 * 60, (24, 48)) * (generator.random((24, 48)) < 0.5)
        Image.fromarray(depth.astype(np.uint16)).save(depths / name)
    (tmp_path / "config.py").write_text(CONFIG.format(root=tmp_path / "kitti"))

    namespace = {}
    exec((tmp_path / "config.py").read_text(), namespace)
    exp = experiment.from_mapping(namespace["get_config"]().to_dict())
    model = registry.module("network", exp.model.name).build(exp.model)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.05, leaf.dtype), shapes)
    with Checkpointer(tmp_path / "run", keep=1) as checkpointer:
        trained = state.create(variables, optax.sgd(0.1), False)
        checkpointer.save(0, trained, config_lib.to_mapping(exp), b"", {})
    return tmp_path / "config.py", tmp_path / "run"


@pytest.mark.slow
def test_a_checkpoint_with_its_config(untrained_run):
    config, checkpoint = untrained_run
    done = run(
        f"--config={config}",
        f"--checkpoint={checkpoint}",
        "--protocol=release",  # drops the config's crop, which belongs to another protocol
        "--max_depth=40",
        "--flip_tta",
        "--num_inference_steps=3",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((checkpoint / "metrics.json").read_text())
    assert result["protocol"] == "release" and result["num_images"] == 3
    options = {"max_depth": 40, "flip_tta": True, "num_inference_steps": 3}
    assert options.items() <= result["options"].items()
    # Noise around 30 m: the median map is off a little, an untrained network by almost everything.
    assert result["metrics"]["abs_rel"] > 0
    assert result["baseline"]["rmse"] < result["metrics"]["rmse"]
    assert len(num_valid(checkpoint)) == 3
    assert "median map" in done.stdout
    page = (checkpoint / "report.html").read_text()
    assert page.count('class="example"') == 3 and "flip_tta=True" in page

    # The same in parts, with another average, compared with the first result.
    workdir = checkpoint.parent / "parts"
    again = [
        f"--config={config}",
        f"--checkpoint={checkpoint}",
        f"--workdir={workdir}",
        f"--compare=before={checkpoint}",
        "--protocol=release",
        "--max_depth=40",
        "--flip_tta",
        "--flip_average=inverse_depth",
        "--num_inference_steps=3",
    ]
    done = run(*again, "--shard=1/2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("shard 1/2 is done")
    (part,) = workdir.iterdir()
    assert len(part.read_text().splitlines()) == 1
    done = run(*again)
    assert done.returncode == 0, done.stderr
    assert "1/3" in done.stderr  # where it resumed
    other = json.loads((workdir / "metrics.json").read_text())
    assert other["options"]["flip_average"] == "inverse_depth" and other["num_images"] == 3
    assert other["comparisons"]["before"]["metrics"] == result["metrics"] != other["metrics"]
    assert sorted(path.name for path in workdir.iterdir()) == [
        "metrics.json",
        "per_image.csv",
        "report.html",
    ]

    # Several samples of each image.
    sampled = checkpoint.parent / "sampled"
    again = [*again[:2], f"--workdir={sampled}", "--protocol=release", "--num_samples=2"]
    done = run(*again)
    assert done.returncode == 0, done.stderr
    found = json.loads((sampled / "metrics.json").read_text())
    assert found["options"]["num_samples"] == 2 and found["metrics"]["spread"] >= 0
    assert "sparsification curve" in (sampled / "report.html").read_text()
    done = run(*again, "--boundary")  # the depth consists of random points
    assert done.returncode == 2 and "image '2011_09_26" in done.stderr
    assert "the boundary metrics need dense, exact ground truth" in done.stderr

    # Saved depth maps, in the folders of the images.
    saved = checkpoint.parent / "saved/2011_09_26_drive_0001_sync/image_02/data"
    saved.mkdir(parents=True)
    for path in (checkpoint.parent / "kitti/val").rglob("*.png"):
        np.save(saved / f"{path.stem}.npy", np.asarray(Image.open(path)) / 256.0)
    done = run(
        f"--config={config}",
        f"--predictions={checkpoint.parent / 'saved'}",
        f"--workdir={workdir}",
        "--protocol=release",
        "--fill_zeros=background",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((workdir / "metrics.json").read_text())
    assert found["metrics"]["abs_rel"] == 0 and found["num_images"] == 3
    assert found["options"]["fill_zeros"] == "background" and found["num_zero"] > 0
    assert "pixels of the predictions were 0: filled" in done.stdout


@pytest.mark.parametrize("kind", ["full", "kb"])
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_real_frames_scored_against_themselves(shared, tmp_path, kind, suffix):
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
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    assert result["protocol"] == "kitti_eigen"
    assert result["options"]["crop"] == "eigen" and result["options"]["max_depth"] == 80
    assert (result["num_images"], result["num_skipped"]) == (2, 0)
    assert result["metrics"]["delta1"] == 1
    assert 0.09 < result["metrics"]["abs_rel"] < 0.1  # 10%, less where the cap clips
    lines = done.stdout.splitlines()
    assert ["ours"] in [line.split() for line in lines]
    assert any("evaluated with dataset" not in line and "652 images" in line for line in lines)
    assert result["reported"] == []
    assert f"{result['metrics']['abs_rel']:.4f}" in done.stdout
    assert "predictions=npy, ground_truth=png" in lines[1]
    assert (tmp_path / "out/report.html").read_text().count('class="example"') == 2


def test_depth_edges_of_saved_maps(tmp_path):
    depth = np.full((20, 30), 9.0)
    depth[5:15, 8:20] = 4
    for name, array in (("predicted", np.roll(depth, 1, axis=1)), ("measured", depth)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", array)
    done = run(
        "--protocol=dense",
        f"--predictions={tmp_path / 'predicted'}",
        f"--ground_truth={tmp_path / 'measured'}",
        f"--workdir={tmp_path / 'out'}",
        "--boundary",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/metrics.json").read_text())["metrics"]
    # Of 10 + 10 + 12 + 12 steps those at the top and bottom match, except for one end each.
    assert found["boundary_f1"] == pytest.approx(22 / 44)
    assert "depth edges by ratio" in done.stdout
    assert "Depth edges" in (tmp_path / "out/report.html").read_text()


def test_several_protocols_compared_with_another_result(folders, tmp_path):
    predicted, measured = folders
    scored = [
        "--protocol=kitti_eigen,kitti_eigen_50m",
        f"--predictions={predicted}",
        f"--ground_truth={measured}",
    ]
    done = run(*scored, f"--workdir={tmp_path / 'control'}")
    assert done.returncode == 0, done.stderr
    for path in predicted.iterdir():
        np.save(path, np.load(path) / 1.1)
    done = run(*scored, f"--workdir={tmp_path / 'out'}", f"--compare=control={tmp_path}/control")
    assert done.returncode == 0, done.stderr
    tables = [table.splitlines() for table in done.stdout.split("\n\n")]
    assert [table[0].split(":")[0] for table in tables] == ["kitti_eigen", "kitti_eigen_50m"]
    for table in tables:
        rows = [line.split() for line in table]
        assert ["ours", "control"] in [row[:2] for row in rows]
        (values,) = (row[1:3] for row in rows if row[0] == "delta_1.05")
        assert values[0] == "1.0000" and float(values[1]) < 0.1
    assert (tmp_path / "out/kitti_eigen_50m/per_image.csv").exists()


def test_mistakes_are_one_line_errors_and_leave_nothing(folders, tmp_path):
    predicted, measured = folders
    scored = [f"--predictions={predicted}", f"--ground_truth={measured}"]
    out = [f"--workdir={tmp_path / 'out'}"]
    model = [f"--config={Path(__file__).parents[1] / 'configs/demo.py'}", "--checkpoint=absent"]
    Image.fromarray(np.zeros((376, 1241), np.uint8)).save(tmp_path / "0000000001.png")
    for arguments, message in [
        ([], "Exactly one of (checkpoint, predictions)"),
        (scored, "--predictions needs --workdir"),
        ([*scored, *out], "--ground_truth needs --predictions, --protocol"),
        ([scored[0], *out, "--protocol=nyu"], "Exactly one of (config, ground_truth)"),
        ([*scored, "--workdir=", "--protocol=nyu"], "workdir"),
        ([*scored, *out, model[0], "--protocol=nyu"], "Exactly one of (config, ground_truth)"),
        ([*scored, *out, "--protocol=kitti_eigne"], "did you mean 'kitti_eigen'?"),
        ([*scored, *out, "--protocol=kitti_eigen", "--crop=grag"], "crop is 'grag'"),
        ([*scored, *out, "--protocol=nyu"], "image '0000000001': the NYU eigen crop"),
        ([*scored, *out, "--protocol=nyu", "--flip_tta"], "--flip_tta needs --checkpoint"),
        ([*scored, *out, "--protocol=nyu", "--checkpoint=x"], "one of (checkpoint, predictions)"),
        ([*scored, *out, "--protocol=nyu", "--shard=0/2"], "--shard needs --checkpoint"),
        ([*scored, *out, "--protocol=nyu", "--compare=x"], "compare is 'x'; it must be NAME=PATH"),
        ([*scored, *out, "--protocol=nyu", "--compare=a=b"], "b does not exist: compare"),
        ([*model, "--shard=2/2"], "shard is '2/2'; it must be I/N"),
        ([*model, "--png_scale=256"], "--png_scale needs --predictions"),
        ([*scored, *out, "--protocol=nyu", "--field=version=2"], "--field needs --checkpoint"),
        ([*model, "--field=version"], "version']: is not a model field: write --field=N"),
        (model[:1], "Exactly one of (checkpoint, predictions)"),
        ([*model, "--ground_truth=x"], "Exactly one of (config, ground_truth)"),
        ([*model, "--ground_truth_png_scale=2"], "_png_scale needs --ground_truth"),
        ([*model, "--resize_prediction=none"], "--resize_prediction needs --predictions"),
        ([*model, "--prediction_frame=kb"], "--prediction_frame needs --predictions"),
        ([*model, "--fill_zeros=background"], "--fill_zeros needs --predictions"),
        ([*scored, *out, "--protocol=nyu", "--batch_size=2"], "_size needs --checkpoint"),
        ([*scored, *out, "--protocol=nyu", "--num_samples=2"], "_samples needs --checkpoint"),
        ([*model, "--num_samples=1"], "num_samples is 1; it must be at least 2"),
        ([*scored, *out, "--protocol=release", "--png_scale=0"], "png_scale is 0.0; it must be"),
        ([*scored, *out, "--protocol=release", "--ground_truth_png_scale=0"], "scale is 0.0"),
        ([*scored, f"--workdir={tmp_path}/0000000001.png", "--protocol=release"], "File exists"),
        ([f"--predictions={tmp_path}", *scored[1:], *out, "--protocol=release"], "0000000002"),
        ([f"--predictions={tmp_path}/*1.png", f"--ground_truth={measured}/*1.png", *out,
          "--protocol=release"], "0000000001.png is not a 16-bit depth map"),
        ([*scored[:1], "--ground_truth=absent", *out, "--protocol=nyu"], "absent is neither"),
        (["--config=absent.py", "--checkpoint=absent"], "absent.py"),
    ]:  # fmt: skip
        done = run(*arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "out").exists()
