"""Weights exported under the published names and read again."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import diffdepth_jax
from diffdepth_jax import inference
from diffdepth_jax.config import to_mapping
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import DenoiserConfig
from diffdepth_jax.models.encoders import mpvit, resnet, swin, swin2, torchvision_resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.weights.rules import Derived, Rule
from tests import scripts

HAHI = {"neck": NeckConfig(8, hahi=True, hahi_features=12)}
ENCODERS = {
    "resnet": (resnet.Config(depths=(1, 2), widths=(4, 6)), {"neck": NeckConfig(8)}),
    "swin": (swin.Config(embed_dim=8, depths=(1, 2), num_heads=(2, 4), window_size=3), HAHI),
    "swin2": (
        swin2.Config(
            embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4, output_norms=True
        ),
        HAHI,
    ),
    "mpvit": (
        mpvit.Config(
            embed_dims=(16, 24), num_layers=(1, 2), num_paths=(1, 2), mlp_ratios=(2.0, 1.5)
        ),
        HAHI,
    ),
    "torchvision": (
        torchvision_resnet.Config(block="bottleneck", depths=(1, 2), widths=(4, 6)),
        {"neck": NeckConfig(8)},
    ),
    "codec4": (
        resnet.Config(depths=(1,), widths=(4,)),
        {"neck": NeckConfig(8), "codec": CodecConfig(factor=4, latent_channels=4)},
    ),
    "codec1": (
        resnet.Config(depths=(1,), widths=(4,)),
        {"neck": NeckConfig(8), "codec": CodecConfig(factor=1, latent_channels=4)},
    ),
}


def config_of(name: str) -> diffusion_depth.Config:
    encoder, parts = ENCODERS[name]
    parts = {"codec": CodecConfig(latent_channels=4)} | parts
    return diffusion_depth.Config(
        encoder=encoder,
        denoiser=DenoiserConfig(hidden_features=8, fuse=name != "resnet"),
        diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=3),
        max_depth=80.0,
        **parts,
    )


def model_of(config: diffusion_depth.Config) -> inference.DepthModel:
    """Random variables for a network."""
    module, rng = diffusion_depth.build(config), np.random.default_rng(0)
    shapes = jax.eval_shape(module.init_variables, jax.random.key(0))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 0.9, leaf.shape), jnp.float32), shapes
    )
    return inference.DepthModel(module, variables, config)


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_model_survives_a_round_trip_bit_for_bit(name, tmp_path):
    model, path = model_of(config_of(name)), tmp_path / "model.safetensors"
    undetermined = inference.export(model, path)
    loaded = diffdepth_jax.load(path)
    equal(loaded.variables, model.variables)
    assert loaded.config.diffusion.num_inference_steps == 3
    assert loaded.config.max_depth == 80.0
    trace = "" if name != "mpvit" else "config.encoder.drop_path_rate"
    assert all(trace and trace in line for line in undetermined), undetermined


def test_fields_that_the_file_does_not_determine_are_reported(tmp_path):
    config = dataclasses.replace(config_of("resnet"), remat="none")
    undetermined = inference.export(model_of(config), tmp_path / "model.safetensors")
    assert undetermined == ["config.remat: 'none' -> 'full'"]


def test_a_model_without_published_names_is_refused(tmp_path):
    config = config_of("resnet")
    config = dataclasses.replace(
        config, denoiser=dataclasses.replace(config.denoiser, variant="paper", num_heads=2)
    )
    with pytest.raises(WeightsError, match="leaves without a name"):
        inference.export(model_of(config), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "case",
    [
        "res18",
        pytest.param("mpvit", marks=pytest.mark.slow),
        pytest.param("swin_hahi", marks=pytest.mark.slow),
    ],
)
def test_official_weights_are_exported_unchanged(case, golden, tmp_path):
    official, path = golden(case).state_dict, tmp_path / "model.safetensors"
    model = diffdepth_jax.load(official)
    inference.export(model, path)
    written = safetensors.numpy.load_file(path)
    table = diffusion_depth.rules(model.config)
    read = [row.pattern for row in table if isinstance(row, Rule)]
    derived = [row.pattern for row in table if isinstance(row, Derived)]
    for name, array in official.items():
        if any(re.fullmatch(pattern, name) for pattern in read):
            np.testing.assert_array_equal(written.pop(name), array, err_msg=name)
        elif any(re.fullmatch(pattern, name) for pattern in derived):
            assert written.pop(name).shape == array.shape
        else:
            assert re.search(
                r"num_batches_tracked|convup_fp|multi_att|self_attn|reference_points|level_embed",
                name,
            ), name
    assert not written


def test_the_script_exports_a_run(tmp_path):
    model = model_of(config_of("resnet"))
    state = TrainState(
        step=jnp.int32(2),
        params=model.variables["params"],
        batch_stats=model.variables["batch_stats"],
        opt_state={},
        ema_params={},
    )
    with Checkpointer(tmp_path / "run", keep=1) as checkpointer:
        checkpointer.save(2, state, {"model": to_mapping(model.config)}, b"{}", {})

    def run(checkpoint):
        output = tmp_path / "model.safetensors"
        flags = (f"--checkpoint={checkpoint}", f"--output={output}")
        return scripts.run("tools/export_torch.py", *flags)

    done = run(tmp_path / "run")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    equal(diffdepth_jax.load(tmp_path / "model.safetensors").variables, model.variables)
    done = run(tmp_path / "nowhere")
    assert done.returncode == 2 and "nowhere does not exist" in done.stderr
