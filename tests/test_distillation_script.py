"""`train.py` as a process, distilling teachers from published files, and on bad input."""

import json
import shutil
from pathlib import Path

import pytest

from diffdepth_jax.errors import UserError
from diffdepth_jax.training import loop
from tests import scripts
from tests.training.pairs import write_folder, write_pairs, write_teacher

CONFIG = """\
import json
from pathlib import Path

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(json.loads(Path({path!r}).read_text()))
"""


def mapping_of(folder: Path) -> dict:
    """Distillation of a small monodepth2; teacher, labels and evaluation data are in `folder`."""
    file = folder / "teacher.safetensors"
    model = write_teacher(file, "monodepth2")
    pairs = str(write_pairs(folder / "pairs", relative=False))
    data = str(write_folder(folder / "data"))
    return {
        "num_steps": 2,
        "batch_size": 2,
        "model": model,
        "init": {"network": str(file)},
        "objective": {"name": "md4all"},
        "data": {
            "train": {
                "source": {"name": "adverse", "root": pairs},
                "augmentation": {"name": "distillation", "crop": (64, 64), "rotation": 0.0},
                "clean_share": 0.5,
            },
            "evaluation": {"name": "folder", "root": data}
            | {"images": "val/image/*.*", "depths": "val/depth/*.*"},
            "baseline_frames": 0,
        },
        "evaluation": {"protocol": "dense"},
        "logging": {"every_steps": 1},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    (folder / "mapping.json").write_text(json.dumps(mapping_of(folder)))
    return folder


def changed(folder, **changes):
    """The folder's experiment with some fields changed: `data__train=...`."""
    mapping = json.loads((folder / "mapping.json").read_text())
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = mapping
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return mapping


def train(folder, workdir, **changes):
    """Runs `train.py`."""
    mapping = changed(folder, **changes)
    source = workdir.with_suffix(".json")
    source.write_text(json.dumps(mapping))
    config = workdir.with_suffix(".py")
    config.write_text(CONFIG.format(path=str(source)))
    return scripts.run("train.py", f"--config={config}", f"--workdir={workdir}")


def copied(folder, tmp_path, remove=(), **changes):
    """The pairs, with entries of some manifest rows changed, by row number, and some files gone."""
    pairs = tmp_path / "pairs"
    shutil.copytree(folder / "pairs", pairs)
    manifest = pairs / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for entry, by_number in changes.items():
        for number, value in by_number.items():
            rows[number][entry] = value
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in remove:
        (pairs / name).unlink()
    return str(pairs)


@pytest.mark.slow
def test_a_student_is_trained_evaluated_and_continues(folder, tmp_path):
    """Labels are computed during training; rejected and failed images are left out."""
    changes = {
        "data__train__source__root": copied(folder, tmp_path, status={0: "rejected", 3: "failed"}),
        "teacher": {"checkpoint": str(folder / "teacher.safetensors")},
        "ema_decay": 0.9,
    }
    result = train(folder, tmp_path / "run", **changes)
    assert result.returncode == 0, result.stderr
    assert "abs_rel" in result.stdout and "Traceback" not in result.stderr
    assert result.stderr.count("2 of 6 images") == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_images"] == 3
    result = train(folder, tmp_path / "run", **changes, num_steps=3)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


def test_a_teacher_of_another_family_is_a_one_line_error(folder, tmp_path):
    write_teacher(tmp_path / "dpt.safetensors", "dpt")
    teacher = {"checkpoint": str(tmp_path / "dpt.safetensors")}
    result = train(folder, tmp_path / "run", teacher=teacher)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (message,) = result.stderr.splitlines()
    assert message.startswith("train.py: error: config.teacher.checkpoint: ")
    assert "it is a 'dpt', not a 'monodepth2'; use a teacher of the same kind" in message
    assert not (tmp_path / "run").exists()


ALL = range(6)


@pytest.mark.parametrize(
    "pairs, parts",
    [
        ({"remove": ["labels/b.npy"]}, ("labels/b.npy", "run generate_adverse.py")),
        ({"remove": ["images/fog/a_0.png"]}, ("images/fog/a_0.png", "run generate_adverse.py")),
        ({"label_is": dict.fromkeys(ALL, "relative_disparity")}, ("relative='inverse'",)),
        (
            {"label_is": {2: "relative_disparity"}},
            ("labels of several kinds", "workdir"),
        ),
        ({"status": dict.fromkeys(ALL, "rejected")}, ("no frames in", "manifest.jsonl")),
    ],
    ids=["no label", "no image", "relative labels", "two kinds of labels", "all rejected"],
)
def test_unusable_pairs_are_an_error_before_training(folder, tmp_path, pairs, parts):
    root = copied(folder, tmp_path, **pairs)
    with pytest.raises(UserError) as info:
        mapping = changed(folder, data__train__source__root=root)
        loop.train_and_evaluate(mapping, tmp_path / "run")
    for part in parts:
        assert part in str(info.value)
    assert not (tmp_path / "run").exists()


def test_a_crop_that_the_network_cannot_take_is_an_error_before_training(folder, tmp_path):
    augmentation = {"name": "distillation", "crop": (70, 50), "rotation": 0.0}
    with pytest.raises(UserError, match=r"augmentation\.crop is \(70, 50\): .*use \(64, 64"):
        loop.train_and_evaluate(
            changed(folder, data__train__augmentation=augmentation), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_student_with_another_input_than_its_teacher_is_an_error(folder, tmp_path):
    write_teacher(tmp_path / "other.safetensors", "monodepth2", input_size=(64, 64))
    other = {"checkpoint": str(tmp_path / "other.safetensors")}
    with pytest.raises(UserError, match=r"other images .*input_spec\.size: .*generate_adverse"):
        loop.train_and_evaluate(changed(folder, teacher=other), tmp_path / "run")
    init = {"network": str(tmp_path / "other.safetensors")}
    with pytest.raises(UserError, match=r"change config\.model\.input_size: \[32, 64\] ->"):
        loop.train_and_evaluate(changed(folder, init=init), tmp_path / "run")
    assert not (tmp_path / "run").exists()
