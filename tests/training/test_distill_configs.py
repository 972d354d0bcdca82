"""The configs for distillation and fine-tuning train small networks from published files."""

import importlib.util
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from pairs import write_folder, write_pairs, write_teacher
from training_client import rows_of

from diffdepth_jax.training import experiment
from diffdepth_jax.weights import orbax

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RELATIVE = {"depth_anything": {"max_depth": None}, "dpt": {}, "midas": {}}
METRIC = {"zoedepth": {}, "monodepth2": {}, "diffusion_depth": {}}
FORMS = ("relative", "metric", "metric_from_encoder")
CASES = {
    "distill_depth_anything": "depth_anything",
    "distill_dpt": "dpt",
    "distill_midas": "midas",
    "distill_zoedepth": "zoedepth",
    "distill_md4all": "monodepth2",
    "distill_diffusion_depth": "diffusion_depth",
}
CROP = {"depth_anything": (42, 56)}


def config_of(name, *form):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*form)


def small(config, network, crop, path):
    """The experiment with another network, and everything else that costs time made small."""
    mapping = config.to_dict()
    mapping |= {"model": network, "num_steps": 2, "batch_size": 2}
    mapping["init"] = {"network": str(path), "encoder": None}
    mapping["logging"]["every_steps"] = 1
    mapping["data"]["train"]["num_workers"] = 0
    mapping["data"]["train"]["augmentation"]["crop"] = crop
    mapping["optimizer"]["learning_rate"] = 1e-3
    return mapping


def check(server, mapping, workdir):
    server.start(mapping, workdir, devices=1)
    assert server.wait() == 0, (workdir / "errors.txt").read_text()
    rows = rows_of(workdir)
    assert [row["step"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["loss"]) > 0 and float(row["gradient_norm"]) > 0
        assert all(math.isfinite(float(value)) for value in row.values())
        assert float(row.get("flat_labels", 0)) == 0
    for leaf in jax.tree.leaves(orbax.read_arrays(workdir).params):
        assert np.isfinite(leaf).all()


# They mostly compile, and the trainer treats them all alike: one is enough for the fast tests.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "distill_md4all" else pytest.mark.slow)
        for name in CASES
    ],
)
def test_a_student_starts_from_a_published_teacher_with_stored_labels(name, server, tmp_path):
    network = CASES[name]
    fields = RELATIVE.get(network) or METRIC.get(network, {})
    model = write_teacher(tmp_path / "teacher.safetensors", network, **fields)
    crop = CROP.get(network, (64, 64))
    mapping = small(config_of(name), model, crop, tmp_path / "teacher.safetensors")
    relative = network in RELATIVE
    pairs = write_pairs(tmp_path / "pairs", relative=relative)
    mapping["data"]["train"]["source"]["root"] = str(pairs)
    check(server, mapping, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["relative", "metric"])
def test_depth_anything_is_fine_tuned_on_a_folder_of_images(form, server, tmp_path):
    fields = {"max_depth": 20.0 if form == "metric" else None}
    model = write_teacher(tmp_path / "file.safetensors", "depth_anything", **fields)
    config = config_of("finetune_depth_anything", form)
    mapping = small(config, model, (42, 56), tmp_path / "file.safetensors")
    for part in (mapping["data"]["train"]["source"], mapping["data"]["evaluation"]):
        part["root"] = str(write_folder(tmp_path / "data"))
    check(server, mapping, tmp_path / "run")


def test_every_form_of_fine_tuning_is_valid():
    forms = {form: config_of("finetune_depth_anything", form) for form in FORMS}
    found = {form: experiment.from_mapping(config.to_dict()) for form, config in forms.items()}
    outputs = {form: exp.model.output for form, exp in found.items()}
    assert outputs.pop("relative") == "relative_disparity"
    assert set(outputs.values()) == {"metric_depth"}
    starts = {form: (exp.init.network, exp.init.encoder) for form, exp in found.items()}
    assert all((network is None) != (encoder is None) for network, encoder in starts.values())
    forms["metric"].model.max_depth = 80.0  # set once for the network, its loss and its scores
    exp = experiment.from_mapping(forms["metric"].to_dict())
    assert exp.objective.max_depth == exp.evaluation.max_depth == exp.model.max_depth == 80.0


def test_an_unknown_form_of_fine_tuning_is_an_error():
    with pytest.raises(ValueError, match="'meters'; it must be one of relative, metric"):
        config_of("finetune_depth_anything", "meters")
