"""load() for every form of checkpoint."""

import dataclasses
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffdepth_jax
from diffdepth_jax import inference, registry
from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.inference.load import _on_device
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.models.networks.network import expected_variables
from diffdepth_jax.weights import files as weights
from diffdepth_jax.weights import rules
from tests.inference.small_model import CONFIG, STEP, image
from tests.weights import torch_writer


def test_a_run_is_rebuilt_from_its_directory_alone(run, model):
    assert model.config == CONFIG
    depth = model.predict(image())
    assert depth.shape == (37, 50)
    assert depth.dtype == np.float32
    assert 0 <= depth.min() < depth.max() <= CONFIG.max_depth
    for path in (run / "checkpoints", run / "checkpoints" / str(STEP)):
        np.testing.assert_array_equal(diffdepth_jax.load(path).predict(image()), depth)


def _aligned(shape):
    """Ones at a multiple of 64 bytes, where JAX can take an array as it is, without a copy."""
    size = int(np.prod(shape))
    memory = np.ones(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // memory.itemsize
    return memory[first : first + size].reshape(shape)


def test_arrays_are_copied_without_compiling_a_program_for_each_shape():
    # Shapes that no other test has compiled for.
    doubles, floats = np.zeros((3, 1, 41)), _aligned((43, 2))
    compiled = []

    def listen(event, seconds, **_):
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = _on_device({"a": doubles, "b": {"c": floats}})
        assert not compiled
        jnp.asarray(np.zeros((3, 1, 47)))
        assert compiled, "the listener hears nothing"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    floats[:] = 5  # the caller's
    np.testing.assert_array_equal(found["b"]["c"], np.ones((43, 2)))
    assert found["a"].dtype == jnp.float32


def test_computing_in_bfloat16_leaves_weights_and_depth_in_float32(run, model):
    half = diffdepth_jax.load(run, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, half.variables, model.variables)
    depth, want = half.predict(image()), model.predict(image())
    assert depth.dtype == np.float32
    difference = np.abs(np.log(depth / want))
    assert 1e-4 < np.median(difference) < 0.05


def test_sources_that_are_not_checkpoints_are_refused(tmp_path, run):
    with pytest.raises(FileNotFoundError, match=r"missing\.pt does not exist"):
        diffdepth_jax.load(tmp_path / "missing.pt")
    with pytest.raises(WeightsError, match="no complete checkpoint"):
        diffdepth_jax.load(tmp_path)
    with pytest.raises(WeightsError, match=f"no checkpoint of step 8, only of steps .{STEP}"):
        diffdepth_jax.load(run, step=8)
    with pytest.raises(ValueError, match=r"not match any known network.*diffusion_depth"):
        diffdepth_jax.load({"fc.weight": np.zeros((2, 2))})


def test_a_state_dict_determines_its_architecture(released_state_dict):
    model = diffdepth_jax.load(released_state_dict)
    released = diffusion_depth.DiffusionConfig()
    assert model.config == dataclasses.replace(CONFIG, diffusion=released, max_depth=None)
    assert model.predict(image()).shape == (37, 50)


def test_safetensors_load_like_the_state_dict(released_state_dict, tmp_path):
    path = tmp_path / "model.safetensors"
    weights.write_safetensors(path, released_state_dict)
    loaded, want = diffdepth_jax.load(path), diffdepth_jax.load(released_state_dict)
    assert loaded.config == want.config
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, want.variables)


def test_damaged_metadata_is_named(released_state_dict, tmp_path):
    weights.write_safetensors(tmp_path / "model.safetensors", released_state_dict, {"args": "{"})
    with pytest.raises(WeightsError, match=r"model\.safetensors .*args.*not valid JSON"):
        diffdepth_jax.load(tmp_path / "model.safetensors")


def test_one_wrong_shape_is_named_with_both_shapes(released_state_dict):
    key = "depth_head.conv_lateral.1.0.weight"
    wrong = released_state_dict | {key: np.zeros((8, 5, 3, 3), np.float32)}
    with pytest.raises(WeightsError) as error:
        diffdepth_jax.load(wrong)
    message = str(error.value)
    assert key in message
    assert "5" in message
    assert message.count("->") == 1, message  # nothing else is wrong


def test_a_missing_and_an_unknown_key_are_named_together(released_state_dict):
    wrong = dict(released_state_dict)
    del wrong["depth_head.conv_lateral.1.0.weight"]
    wrong["depth_head.surprise.weight"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError) as error:
        diffdepth_jax.load(wrong)
    message = str(error.value)
    assert "identified as the network 'diffusion_depth': " in message
    assert "surprise" in message and ": no depth_head.conv_lateral.1.0.weight" in message


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_written_by_pytorch_loads_to_the_same_variables(
    released_state_dict, tmp_path, zipped
):
    torch = pytest.importorskip("torch")
    from argparse import Namespace

    path = tmp_path / "model_00010.pt"
    tensors = {name: torch.from_numpy(array) for name, array in released_state_dict.items()}
    tensors["depth_backbone.layers.0.0.bn1.num_batches_tracked"] = torch.tensor(5)
    arguments = Namespace(inference_steps=4, max_depth=88.0, head_specify="DDIMDepthEstimate_Res")
    contents = {"net": tensors, "args": arguments}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    loaded, want = diffdepth_jax.load(path), diffdepth_jax.load(released_state_dict)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, want.variables)
    assert loaded.config.diffusion.num_inference_steps == 4
    assert loaded.config.max_depth == 88.0


# ---- what weights do not determine ---------------------------------------------------------------


@pytest.fixture
def twins(monkeypatch):
    """Two networks whose weights have the same names and shapes as DiffusionDepth's."""
    for name, extra in {
        "first": {"FILES": {r"first_\w+": {"max_depth": 20.0}}, "UNDETERMINED": {}},
        "second": {
            "FILES": {r"second_\w+": {"max_depth": 10.0}},
            "UNDETERMINED": {"max_depth": (10, 80)},
        },
    }.items():
        file = types.ModuleType(f"twin_{name}")
        offered = {key: value for key, value in vars(diffusion_depth).items() if key[:2] != "__"}
        file.__dict__.update(offered | extra)
        monkeypatch.setitem(sys.modules, file.__name__, file)
        monkeypatch.setitem(registry.MODULES["network"], name, file.__name__)
        signature = registry.SIGNATURES["network"]["diffusion_depth"]
        monkeypatch.setitem(registry.SIGNATURES["network"], name, signature)
    monkeypatch.delitem(registry.SIGNATURES["network"], "diffusion_depth")


def test_the_caller_says_which_of_two_networks_is_meant(released_state_dict, twins):
    with pytest.raises(WeightsError, match=r"network='first' or network='second'"):
        diffdepth_jax.load(released_state_dict)
    assert diffdepth_jax.load(released_state_dict, network="first").config.max_depth is None
    complaint = r"max_depth.*max_depth=10 or max_depth=80\). Published files have max_depth=10.0$"
    with pytest.raises(WeightsError, match=complaint):
        diffdepth_jax.load(released_state_dict, network="second")
    model = diffdepth_jax.load(released_state_dict, "second", max_depth=80.0)
    assert model.config.max_depth == 80.0


def test_a_published_file_name_says_which_is_meant(released_state_dict, twins, tmp_path):
    for stem, depth in {"first_small": 20.0, "second_small": 10.0}.items():
        weights.write_safetensors(tmp_path / f"{stem}.safetensors", released_state_dict)
        assert diffdepth_jax.load(tmp_path / f"{stem}.safetensors").config.max_depth == depth
    named = diffdepth_jax.load(tmp_path / "second_small.safetensors", max_depth=30.0)
    assert named.config.max_depth == 30.0  # the caller has the last word
    weights.write_safetensors(tmp_path / "other.safetensors", released_state_dict)
    with pytest.raises(WeightsError, match=r"other\.safetensors.*network='first'"):
        diffdepth_jax.load(tmp_path / "other.safetensors")


def test_fields_go_into_the_config_or_are_refused_by_name(released_state_dict, run):
    loaded = diffdepth_jax.load(
        released_state_dict, max_depth=70, diffusion={"num_inference_steps": 4}
    )
    assert loaded.config.max_depth == 70.0
    assert loaded.config.diffusion == diffusion_depth.DiffusionConfig(num_inference_steps=4)
    for source in (released_state_dict, run):
        with pytest.raises(ConfigError, match=r"max_dept.*did you mean 'max_depth'"):
            diffdepth_jax.load(source, max_dept=70)
    assert diffdepth_jax.load(run, max_depth=5.0).predict(image()).max() <= 5
    with pytest.raises(ConfigError, match=r"'diffusion_depth', not of 'regression'"):
        diffdepth_jax.load(run, "regression")
    with pytest.raises(ConfigError, match="no network named 'deep'"):
        diffdepth_jax.load(released_state_dict, "deep")
    with pytest.raises(WeightsError, match="fit no architecture of this network"):
        diffdepth_jax.load(released_state_dict, "regression")


def checkpoint(path, state_dict, arguments):
    tensors = {name: torch_writer.whole(name, array) for name, array in state_dict.items()}
    torch_writer.write_zip(path, {"net": tensors, "args": arguments}, state_dict)
    return path


@pytest.mark.parametrize(
    "arguments", [["train.py"], ("a", "b"), 7, '"train.py"', "train.py --x=1", 0.5]
)
def test_arguments_that_are_not_a_mapping_are_ignored(released_state_dict, tmp_path, arguments):
    path = checkpoint(tmp_path / "model.pt", released_state_dict, arguments)
    with pytest.warns(UserWarning, match=r"model\.pt.*args.*defaults"):
        loaded = diffdepth_jax.load(path)
    assert loaded.config.diffusion.num_inference_steps == 20


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_depth": 10**400}, "max_depth"),
        ({"inference_steps": "many"}, "inference_steps.*'many'"),
        ({"num_train_timesteps": 10**8}, "num_train_timesteps is 100000000"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"inference_steps": 5000}, "num_inference_steps.*5000"),
        ({"max_depth": -1.0}, "max_depth is -1"),
    ],
)
def test_impossible_arguments_are_named(released_state_dict, tmp_path, arguments, named):
    path = checkpoint(
        tmp_path / "model.pt", released_state_dict, torch_writer.namespace(**arguments)
    )
    with pytest.raises(WeightsError, match=rf"model\.pt.*{named}"):
        diffdepth_jax.load(path)


# ---- the transformers layout ---------------------------------------------------------------------


def test_a_transformers_directory_determines_everything(released_state_dict, layout, tmp_path):
    theirs = {f"model.{name}": array for name, array in released_state_dict.items()}
    weights.write_safetensors(tmp_path / "model.safetensors", theirs)
    want = diffdepth_jax.load(released_state_dict, max_depth=20.0)
    with pytest.raises(WeightsError, match=r"max_depth=10\.0 or max_depth=80\.0"):
        diffdepth_jax.load(tmp_path)
    described = {"model_type": "diffusion_depth", "max_depth": 20.0}
    (tmp_path / "config.json").write_text(json.dumps(described))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        loaded = diffdepth_jax.load(source)
        assert loaded.config == want.config
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, want.variables)
    assert diffdepth_jax.load(tmp_path, max_depth=5.0).config.max_depth == 5.0
    with pytest.raises(ConfigError, match=r"step is 3.*model\.safetensors"):
        diffdepth_jax.load(tmp_path, step=3)
    (tmp_path / "config.json").write_text(json.dumps(described | {"max_depth": -1}))
    with pytest.raises(WeightsError, match=r"cannot be loaded: max_depth is negative in config"):
        diffdepth_jax.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(described | {"model_type": "dpt"}))
    with pytest.raises(WeightsError, match="fit no architecture"):
        diffdepth_jax.load(tmp_path)


def test_a_run_next_to_exported_weights_is_a_run(run, tmp_path, released_state_dict):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    weights.write_safetensors(tmp_path / "model.safetensors", released_state_dict)
    assert diffdepth_jax.load(tmp_path).config == CONFIG
    shutil.rmtree(tmp_path / "checkpoints")
    assert diffdepth_jax.load(tmp_path).config != CONFIG


# ---- almost a known network ----------------------------------------------------------------------


def exported(variant):
    """Zeros with the names and shapes of a variant."""
    config = diffusion_depth.VARIANTS[variant]
    expected = expected_variables(diffusion_depth.build(config))
    shapes = rules.shapes(expected, diffusion_depth.rules(config))
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_the_error_names_the_nearest_architecture_and_the_differences():
    state_dict = exported("res18")
    del state_dict["depth_head.model.time_embedding.weight"]  # this entry identifies the family
    first = "depth_backbone.layers.0.0.conv1.weight"
    state_dict[first] = np.zeros((7, 3, 3, 3), np.float32)
    state_dict["depth_head.surprise.weight"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError) as error:
        diffdepth_jax.load(state_dict)
    message = str(error.value)
    count = len(state_dict)
    assert f"'res18' of the network 'diffusion_depth', in which {count - 2} of {count} " in message
    assert f"with a different shape (1): {first}: (7, 3, 3, 3), not (64, 3, 3, 3)" in message
    assert "missing (1): depth_head.model.time_embedding.weight" in message
    assert "unknown (1): depth_head.surprise.weight" in message


def test_the_nearest_architecture_may_have_transformers_names(layout):
    state_dict = {f"model.{name}": array for name, array in exported("res18").items()}
    first = "model.depth_backbone.layers.0.0.conv1.weight"
    del state_dict[first]
    with pytest.raises(WeightsError) as error:
        diffdepth_jax.load(state_dict | {"surprise": np.zeros(2)})
    message = str(error.value)
    assert "'res18' of the network 'diffusion_depth' with transformers' names" in message
    assert f"missing (1): {first}" in message and "unknown (1): surprise" in message


def test_a_prefix_that_a_wrapper_adds_to_all_names_does_not_matter(released_state_dict):
    want = diffdepth_jax.load(released_state_dict)
    for prefix in ("model.", "_orig_mod.", "module.depth_model._orig_mod."):
        wrapped = {f"{prefix}{name}": array for name, array in released_state_dict.items()}
        loaded = diffdepth_jax.load(wrapped)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, want.variables)
    with pytest.raises(WeightsError, match=r"1 weights \(a\.b\.c\) do not match any"):
        diffdepth_jax.load({"a.b.c": np.zeros(2)})
    with pytest.raises(WeightsError, match=r"these 0 weights .* do not match any"):
        diffdepth_jax.load({})
    with pytest.raises(WeightsError, match="the key 7, which is not a string"):
        diffdepth_jax.load({7: np.zeros(2)})


def test_a_bare_encoder_is_recognised_in_the_error(released_state_dict):
    root = "depth_backbone."
    encoder = {name[len(root) :]: a for name, a in released_state_dict.items() if root in name}
    with pytest.raises(WeightsError, match=r"only an encoder \('resnet'\), for config\.init"):
        diffdepth_jax.load(encoder)


def test_unrelated_weights_have_no_nearest_architecture():
    with pytest.raises(WeightsError) as error:
        diffdepth_jax.load({"transformer.wte.weight": np.zeros((2, 2))})
    assert "nearest" not in str(error.value)


@pytest.mark.parametrize(
    "stem", ["second_small", "second_small-0a1b2c3d", "second_small (1)", "second_small(2)"]
)
def test_a_file_name_with_a_hub_hash_or_a_browser_number(
    released_state_dict, twins, tmp_path, stem
):
    weights.write_safetensors(tmp_path / f"{stem}.safetensors", released_state_dict)
    assert diffdepth_jax.load(tmp_path / f"{stem}.safetensors").config.max_depth == 10.0


@pytest.mark.parametrize("nested", ["model", "state_dict", "net"])
@pytest.mark.parametrize("optimizer", [True, False])
def test_weights_nested_next_to_an_optimizer(released_state_dict, tmp_path, nested, optimizer):
    """As MiDaS, ZoeDepth and others save them, with the prefix of several devices."""
    entries = {f"module.{name}": array for name, array in released_state_dict.items()}
    tensors = {name: torch_writer.whole(name, array) for name, array in entries.items()}
    moments = {"state": {0: {"step": 3, "exp_avg": next(iter(tensors.values()))}}}
    value = {nested: tensors, "epoch": 3} | ({"optimizer": moments} if optimizer else {})
    torch_writer.write_zip(tmp_path / "weights.pt", value, entries)
    loaded, want = (
        diffdepth_jax.load(source) for source in (tmp_path / "weights.pt", released_state_dict)
    )
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, want.variables)


def test_a_lightning_file_is_read_without_its_classes(released_state_dict, tmp_path):
    array = np.ones(2, np.float32)
    entries = released_state_dict | {"~moment": array}
    tensors = {name: torch_writer.whole(name, array) for name, array in entries.items()}
    moment = tensors.pop("~moment")
    node = torch_writer.name("yacs.config.CfgNode").opcodes + b")" + torch_writer.NEW
    node += b"(" + torch_writer.dump("LR") + torch_writer.dump(0.1) + b"u"
    node += torch_writer.dump({"__immutable__": True}) + b"b"
    callback = torch_writer.name("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    value = {
        "epoch": 3,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": tensors,
        "callbacks": {"x": {"best_model_path": torch_writer.call("pathlib.PosixPath", "a", "b")}},
        "optimizer_states": [{"state": {0: {"exp_avg": moment}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"cfg": torch_writer.Raw(node)},
    }
    opcodes = b"(" + callback.opcodes + torch_writer.dump({"best_model_score": moment}) + b"d"
    value["old_callbacks"] = torch_writer.Raw(opcodes)
    torch_writer.write_zip(tmp_path / "last.ckpt", value, entries)
    contents = weights.read(tmp_path / "last.ckpt")
    assert contents.metadata == {"epoch": 3, "pytorch-lightning_version": "1.5.10"}
    loaded, want = (
        diffdepth_jax.load(source) for source in (tmp_path / "last.ckpt", released_state_dict)
    )
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, want.variables)


@pytest.mark.parametrize("change, named", [({"name": "deep"}, "'deep'"), ({"wide": 3}, "wide")])
def test_a_config_of_another_version_is_named_with_its_checkpoint(run, tmp_path, change, named):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    place = tmp_path / "checkpoints" / str(STEP)
    (place / "checksums.json").unlink()  # older checkpoints have none
    file = place / "config" / "metadata"
    config = json.loads(file.read_text())
    config["model"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=rf"checkpoints/{STEP} .*{named}"):
        diffdepth_jax.load(tmp_path)


def test_recalibrated_statistics_of_another_shape_are_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    place = copy / "checkpoints" / str(STEP)
    model = diffdepth_jax.load(copy).recalibrate([image()], 2)
    inference.save_recalibrated(model, place)
    text = (place / "recalibrated.json").read_text()
    assert list(diffdepth_jax.load(copy).recalibrated) == [2]
    values = json.loads(text)
    name = next(iter(values["2"]))
    values["2"][name] = values["2"][name][:-1]
    (place / "recalibrated.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=rf"recalibrated\.json[\s\S]*{name}"):
        diffdepth_jax.load(copy)
