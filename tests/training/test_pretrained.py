"""Encoder weight files: their layout, what fits, and a run that starts from one."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import inference
from diffdepth_jax.config import to_mapping
from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import DenoiserConfig
from diffdepth_jax.models.encoders import dinov2, mpvit, resnet, swin, swin2, torchvision_resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import depth_anything, diffusion_depth
from diffdepth_jax.training import experiment, loop, pretrained
from diffdepth_jax.training.pretrained import InitConfig
from diffdepth_jax.weights import files
from diffdepth_jax.weights.rules import (
    Fresh,
    Rule,
    Skip,
    export,
    linear,
    names,
)

SWIN = swin.Config(embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4, mlp_ratio=2.0)
SWIN2 = swin2.Config(embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4, image_size=64)
RESNET = torchvision_resnet.Config(block="bottleneck", depths=(1, 1), widths=(4, 6))
MPVIT = mpvit.Config(
    embed_dims=(16, 24), num_layers=(1, 2), num_paths=(1, 2), mlp_ratios=(2.0,) * 2
)


def variables_of(module, config):
    rng = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(module.Encoder(config).init, jax.random.key(0), image)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def weights_of(module, config) -> tuple[dict, dict]:
    """Random variables of an encoder, and the same under DiffusionDepth's names."""
    variables, table = variables_of(module, config), module.rules(config)
    return variables, export(variables, table, names(variables, table))


def renamed(state_dict: dict, *substitutions: tuple[str, str]) -> dict:
    """The same arrays under other names, for layouts that differ only in names."""
    result = {}
    for name, array in state_dict.items():
        for pattern, replacement in substitutions:
            name = re.sub(pattern, replacement, name)
        result[name] = array
    return result


def microsoft() -> tuple[dict, dict]:
    """Random variables of a Swin, and the same in Microsoft's layout with all skipped entries."""
    variables = variables_of(swin, SWIN)
    mmcv = tuple(  # merging has Microsoft's channel order here
        Rule(row.pattern, row.path, linear)
        if isinstance(row, Rule) and row.transform is swin.MERGE_REDUCTION
        else Rule(row.pattern, row.path)
        if isinstance(row, Rule) and row.transform is swin.MERGE_NORM
        else row
        for row in swin.rules(SWIN)
    )
    state_dict = renamed(
        export(variables, mmcv, names(variables, mmcv)),
        (r"patch_embed\.projection", "patch_embed.proj"),
        (r"^stages", "layers"),
        (r"\.w_msa", ""),
        (r"ffn\.layers\.0\.0", "mlp.fc1"),
        (r"ffn\.layers\.1", "mlp.fc2"),
    )
    state_dict = {name: a for name, a in state_dict.items() if not re.match(r"norm\d", name)}
    classifier = {name: np.ones(16, np.float32) for name in ("norm.weight", "norm.bias")}
    classifier |= {"head.weight": np.ones((5, 16), np.float32), "head.bias": np.ones(5, np.float32)}
    return variables, state_dict | classifier | {
        "layers.0.blocks.1.attn_mask": np.ones((1, 16, 16))
    }


def timm() -> tuple[dict, dict]:
    variables, state_dict = microsoft()
    state_dict = renamed(
        state_dict, (r"layers\.0\.downsample", "layers.1.downsample"), (r"^head", "head.fc")
    )
    left = [name for name in state_dict if "index" in name or "attn_mask" in name]
    return variables, {name: a for name, a in state_dict.items() if name not in left}


def transformers(modules: bool = False) -> tuple[dict, dict]:
    """Names as saved; with `modules`, the module names of version 5."""
    variables, state_dict = microsoft()
    attention = (
        (r"attn\.proj", "attention.o_proj"),
        (r"attn\.rel", "attention.relative_position_bias.rel"),
    )
    if not modules:
        attention = (
            (r"attn\.proj", "attention.output.dense"),
            (r"attn\.rel", "attention.self.rel"),
            (r"mlp\.fc1", "intermediate.dense"),
            (r"mlp\.fc2", "output.dense"),
        )
    state_dict = renamed(
        state_dict,
        (r"patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", "embeddings.norm"),
        (r"^layers", "encoder.layers"),
        *attention,
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
        (r"^norm", "layernorm"),
        (r"^(?!head)", "swin."),
        (r"^head", "classifier"),
    )
    separate = {}
    for name, array in state_dict.items():
        if "qkv" not in name:
            separate[name] = array
            continue
        for part, value in zip(("query", "key", "value"), np.split(array, 3), strict=True):
            module = f"attention.{part[0]}_proj" if modules else f"attention.self.{part}"
            separate[name.replace("attn.qkv", module)] = value
    return variables, {name: a for name, a in separate.items() if "attn_mask" not in name}


def mmcv(*, norms: bool = True) -> tuple[dict, dict]:
    variables, state_dict = weights_of(swin, SWIN)
    if not norms:
        del state_dict["norm0.weight"], state_dict["norm0.bias"]
        del variables["params"]["norm0"]
    return variables, {f"backbone.{name}": a for name, a in state_dict.items()} | {
        "head.fc.weight": np.ones((3, 16), np.float32)
    }


def swin2_of_timm() -> tuple[dict, dict]:
    """As in timm since 0.9: without masks, and merging at the start of a stage."""
    variables, state_dict = weights_of(swin2, SWIN2)
    state_dict = renamed(
        state_dict, (r"layers\.0\.downsample", "layers.1.downsample"), (r"^head", "head.fc")
    )
    return variables, {name: a for name, a in state_dict.items() if "attn_mask" not in name}


def swin2_of_microsoft() -> tuple[dict, dict]:
    variables, state_dict = weights_of(swin2, SWIN2)
    tables = {
        f"layers.{stage}.blocks.0.attn.relative_{name}": np.ones(shape, np.float32)
        for stage in (0, 1)
        for name, shape in {"coords_table": (1, 7, 7, 2), "position_index": (16, 16)}.items()
    }
    return variables, state_dict | tables


def published_mpvit() -> tuple[dict, dict]:
    variables, state_dict = weights_of(mpvit, MPVIT)
    return variables, state_dict | {"cls_head.cls.bias": np.ones(3, np.float32)}


def torchvision() -> tuple[dict, dict]:
    variables, state_dict = weights_of(torchvision_resnet, RESNET)
    return variables, state_dict | {"fc.bias": np.ones(3, np.float32)}


CASES = {
    "microsoft": (SWIN, microsoft),
    "timm": (SWIN, timm),
    "transformers": (SWIN, transformers),
    "transformers modules": (SWIN, lambda: transformers(modules=True)),
    "mmcv": (SWIN, mmcv),
    "mmpretrain": (SWIN, lambda: mmcv(norms=False)),
    "swin2 of timm": (SWIN2, swin2_of_timm),
    "swin2 of microsoft": (SWIN2, swin2_of_microsoft),
    "mpvit": (MPVIT, published_mpvit),
    "torchvision": (RESNET, torchvision),
}


def equal(one, other):
    """The leaves are the same; a module without loaded leaves may be present or not."""
    one, other = (dict(jax.tree.leaves_with_path(tree)) for tree in (one, other))
    assert one.keys() == other.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=jax.tree_util.keystr(path))


@pytest.fixture
def write(tmp_path):
    def write(state_dict):
        path = tmp_path / "weights.safetensors"
        files.write_safetensors(path, state_dict)
        return path

    return write


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_recognised_and_fills_the_encoder(name, wrapped, write):
    config, make = CASES[name]
    variables, state_dict = make()
    if config is SWIN and not name.startswith("mm"):
        for norm in ("norm0", "norm1"):
            del variables["params"][norm]
    if wrapped:
        state_dict = {f"module.{key}": array for key, array in state_dict.items()}
        state_dict["queue.pointer"] = np.zeros(1, np.float32)
    equal(pretrained.load_encoder(write(state_dict), config), variables)


def test_the_release_is_a_source_of_encoders_too(write):
    config = resnet.Config(depths=(1, 1), widths=(4, 6))
    variables, state_dict = weights_of(resnet, config)
    state_dict = {f"depth_backbone.{name}": a for name, a in state_dict.items()}
    path = write(state_dict | {"depth_head.model.pred.0.bias": np.ones(3, np.float32)})
    equal(pretrained.load_encoder(path, config), variables)


def message(path, config) -> str:
    with pytest.raises(WeightsError) as info:
        pretrained.load_encoder(path, config)
    assert str(path) in str(info.value)
    return str(info.value)


def test_another_window_is_refused_naming_both(write):
    path = write(microsoft()[1])
    config = swin.Config(
        **{**to_mapping(SWIN), "depths": (2, 1), "num_heads": (2, 4), "window_size": 7}
    )
    text = message(path, config)
    assert "change config.model.encoder.window_size: 7 -> 4\n" in text
    assert "(49, 2), but the model has (169, 2)" in text


def test_weights_of_another_kind_are_refused_listing_candidates(write):
    path = write(torchvision()[1])
    text = message(path, resnet.Config())
    assert "known layout of the encoder 'resnet' (known: diffusion_depth)" in text
    assert "weights of the encoder 'torchvision_resnet'" in text
    text = message(path, SWIN)
    assert "known: microsoft, timm, transformers, mmcv, mmpretrain" in text


def test_several_encoders_in_one_file_are_refused(write):
    state_dict = torchvision()[1]
    both = {f"{root}.{name}": a for root in ("model", "ema") for name, a in state_dict.items()}
    text = message(write(both), RESNET)
    assert "torchvision under 'ema.', torchvision under 'model.'" in text


def test_entries_that_affect_the_features_are_never_skipped(write):
    state_dict = microsoft()[1]
    text = message(write(state_dict | {"absolute_pos_embed": np.ones(3, np.float32)}), SWIN)
    assert "keys without a rule (1)" in text and "absolute_pos_embed" in text
    del state_dict["layers.0.blocks.1.norm1.bias"]
    assert "params/stage0_block1/norm1/bias" in message(write(state_dict), SWIN)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pretrained.load_encoder(tmp_path / "nowhere.pth", SWIN)


def test_every_encoder_has_layouts_with_reasons():
    for config in (SWIN, MPVIT, RESNET, resnet.Config()):
        layouts = pretrained.registry.module("encoder", config.name).LAYOUTS
        for layout in layouts.values():
            assert layout.infer({"stranger.weight": (3,)}) is None
            rows = layout.rules(config)
            assert all(row.reason for row in rows if isinstance(row, Skip | Fresh))


def experiment_of(encoder, path, tiny, neck=None, **denoiser) -> dict:
    network = diffusion_depth.Config(
        encoder=encoder,
        neck=neck or NeckConfig(8),
        codec=CodecConfig(latent_channels=4),
        denoiser=DenoiserConfig(hidden_features=8, **denoiser),
        diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=2),
        max_depth=20.0,
    )
    return tiny | {
        "num_steps": 1,
        "model": to_mapping(network),
        "objective": {"name": "self_diffusion"},
        "init": {"encoder": None if path is None else str(path)},
    }


@pytest.mark.slow
def test_a_run_starts_from_the_file_and_resumes_without_it(tiny, tmp_path, write):
    """With torchvision's ResNet, whose features start at a quarter of the image size."""
    _, state_dict = torchvision()
    state_dict = {n: abs(a) if "var" in n else 0.1 * a for n, a in state_dict.items()}
    path = write(state_dict)
    tiny["data"]["train"]["augmentation"] = {"crop": (48, 64), "scale": (4.0, 4.0)}
    tiny["optimizer"] = {"learning_rate": 1e-8}
    mapping = experiment_of(RESNET, path, tiny, fuse=True)
    loop.train(experiment.from_mapping(mapping), tmp_path / "run")
    model = inference.load(tmp_path / "run")
    want = pretrained.load_encoder(path, RESNET)["params"]
    got = model.variables["params"]["encoder"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    assert model.predict(np.zeros((37, 50, 3), np.uint8)).shape == (37, 50)

    path.unlink()
    loop.train(experiment.from_mapping(mapping | {"num_steps": 2}), tmp_path / "run")
    assert inference.load(tmp_path / "run").variables
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["init"] == {"encoder": str(path), "network": None, "options": {}}


def test_loaded_arrays_replace_fresh_ones():
    fresh = {"params": {"encoder": {"a": 1, "b": 2}, "neck": {"c": 3}}, "batch_stats": {"x": 4}}
    mixed = pretrained.overlay(fresh, {"params": {"encoder": {"b": 20}}})
    assert mixed == {
        "params": {"encoder": {"a": 1, "b": 20}, "neck": {"c": 3}},
        "batch_stats": {"x": 4},
    }
    assert fresh["params"]["encoder"]["b"] == 2


def test_errors_name_the_field(tiny, write):
    with pytest.raises(ConfigError, match=r"init\.encoder is 'x\.pth'.*'tiny' has no encoder"):
        experiment.from_mapping(tiny | {"init": {"encoder": "x.pth"}})
    network = diffusion_depth.Config(encoder=RESNET)
    with pytest.raises(ConfigError, match=r"^config\.init\.encoder: .*known layout"):
        pretrained.load(InitConfig(str(write(microsoft()[1]))), network)
    assert pretrained.load(InitConfig(), network) == {}


DINOV2 = dinov2.Config(
    embed_dim=64, depth=4, num_heads=1, taps=(0, 1, 2, 3), hidden_features=16, grid=3
)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.1], ids=["frozen", "trained"])
def test_a_run_on_the_encoder_of_a_depth_anything_file(rate, tiny, tmp_path, write):
    teacher = depth_anything.Config(
        encoder=DINOV2, project_features=(4, 4, 4, 4), fused_features=4, output_features=4
    )
    variables = depth_anything.build(teacher).init_variables(jax.random.key(0))
    table = depth_anything.rules(teacher)
    path = write(export(variables, table, names(variables, table)))
    tiny["data"]["train"]["augmentation"] = {"crop": (42, 56), "scale": (4.0, 4.0)}
    tiny["optimizer"] = {"learning_rate": 1e-3, "multipliers": {"encoder": rate}}
    neck = NeckConfig(8, reassemble=(4, 6, 8, 10))
    mapping = experiment_of(DINOV2, path, tiny, neck) | {"num_steps": 2}
    exp = experiment.from_mapping(mapping)
    start = diffusion_depth.build(exp.model).init_variables(jax.random.key(exp.seed))
    loop.train(exp, tmp_path / "run")
    model = inference.load(tmp_path / "run")
    mapping["model"]["neck"] = {"features": 8}
    with pytest.raises(ConfigError, match=r"all have a stride of 14 pixels: set neck\.reassemble"):
        experiment.from_mapping(mapping)
    assert model.config.neck == neck
    encoder = [tree["params"]["encoder"] for tree in (model.variables, variables)]
    moved = jax.tree.map(lambda one, two: float(np.abs(one - two).max()), *encoder)
    assert (max(jax.tree.leaves(moved)) > 1e-6) == (rate > 0)
    assert max(jax.tree.leaves(moved)) < 1e-3
    neck = [tree["params"]["neck"]["reassemble"] for tree in (model.variables, start)]
    moved = jax.tree.map(lambda one, two: bool((one != two).any()), *neck)
    assert all(jax.tree.leaves(moved)), moved
    # Any image size: resized to multiples of the patch, and back.
    assert model.input_spec.multiple == 14
    assert model.predict(np.zeros((37, 50, 3), np.uint8)).shape == (37, 50)
    # The module itself takes any size too.
    image = jnp.zeros((1, 30, 45, 3))
    condition = model.model.apply(model.variables, image, method="encode_image")
    assert condition.shape == (1, 9, 13, 8)  # 3.5 pixels each, rounded up
