"""The two forms of the sampler's step: equal results and gradients, and which one is chosen."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import Denoiser, DenoiserConfig, sampler_form
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.models.networks.diffusion_depth import Config, DiffusionConfig
from diffdepth_jax.ops import platform
from diffdepth_jax.ops.conv import conv3x3
from diffdepth_jax.training.objectives import self_diffusion

FUSED = DenoiserConfig(hidden_features=8, fuse=True)
TINY = Config(
    encoder=resnet.Config(depths=(1, 1), widths=(4, 8)),
    neck=NeckConfig(8),
    codec=CodecConfig(latent_channels=4),
    denoiser=FUSED,
    diffusion=DiffusionConfig(num_inference_steps=3),
)
SIZE = (2, 24, 36)  # images; the latent is half that size


@cache
def _variables():
    """Weights scaled like PyTorch's, but from NumPy: compiling an initialisation takes longer."""
    model, rng = diffusion_depth.build(TINY), np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4.0
        return jnp.asarray(rng.standard_normal(leaf.shape) * fan_in**-0.5, jnp.float32)

    variables = jax.tree.map(draw, jax.eval_shape(model.init_variables, jax.random.key(0)))
    return variables | {"batch_stats": jax.tree.map(jnp.square, variables["batch_stats"])}


def _loss(config, params, batch):
    objective = self_diffusion.build(
        self_diffusion.Config(l1=1.0), diffusion_depth.build(config), num_steps=1
    )
    loss, _ = objective(params, _variables()["batch_stats"], batch, jax.random.key(1), jnp.int32(0))
    return loss


def _batch():
    rng = np.random.default_rng(1)
    return {
        "image": jnp.asarray(rng.standard_normal((*SIZE, 3)), jnp.float32),
        "depth": jnp.asarray(rng.uniform(1, 20, (*SIZE, 1)), jnp.float32),
        "valid_mask": jnp.asarray(rng.uniform(size=(*SIZE, 1)) < 0.5),
    }


@cache
def _gradient(form, remat):
    config = replace(TINY, sampler_form=form, remat=remat)
    return (
        jax.jit(jax.value_and_grad(partial(_loss, config)))
        .lower(_variables()["params"], _batch())
        .compile()
    )


def _convolutions_in_loops(compiled):
    """Layouts of all convolutions inside loop bodies."""
    text = compiled.as_text()
    computations = dict(re.findall(r"^%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    waiting = re.findall(r"body=%?([\w.-]+)", text)
    assert waiting, "nothing loops"
    seen, layouts = set(), []
    while waiting:
        name = waiting.pop()
        if name in seen or name not in computations:
            continue
        seen.add(name)
        body = computations[name]
        waiting += re.findall(r"%([\w.-]+)", body)
        layouts += re.findall(r"dim_labels=([\w>-]+)", body)
    return layouts


@pytest.mark.parametrize("remat", ["none", "full"])
def test_training_steps_have_equal_losses_and_gradients(remat):
    want, wanted = _gradient("plain", "none")(_variables()["params"], _batch())
    got, gradients = _gradient("composed", remat)(_variables()["params"], _batch())
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        other = wanted
        for key in path:
            other = other[key.key]
        assert np.abs(gradient - other).max() < 2e-4 * np.abs(other).max() + 1e-7, path


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the slow path is XLA:CPU's")
@pytest.mark.parametrize(("form", "remat"), [("plain", "none"), ("composed", "full")])
def test_training_steps_use_only_convolutions_that_are_fast_on_the_cpu(form, remat):
    """See `ops.conv`: with other forms, loops take tens of times as long."""
    layouts = _convolutions_in_loops(_gradient(form, remat))
    assert len(layouts) >= 6 and set(layouts) == {"b01f_01io->b01f"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the slow path is XLA:CPU's")
def test_a_slow_convolution_would_be_noticed():
    def loss(kernel):
        def step(maps, _):
            return jnp.tanh(conv3x3(maps, kernel, gradient="xla")), None

        return jax.lax.scan(step, jnp.ones((2, 12, 20, 16)), length=3)[0].sum()

    slow = jax.jit(jax.grad(loss)).lower(jnp.ones((3, 3, 16, 16))).compile()
    assert set(_convolutions_in_loops(slow)) > {"b01f_01io->b01f"}


@pytest.mark.parametrize("size", [(7, 12)])
def test_one_step_is_equal_everywhere(size):
    denoiser = Denoiser(FUSED, 8, 4)
    variables = {"params": _variables()["params"]["denoiser"]}
    rng = np.random.default_rng(2)
    condition, latent = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((2, 3, 5, 8), (2, *size, 4))
    )
    timesteps = jnp.array([950, 3])

    def both(module):
        prepared, composed = module.prepare(condition, size), module.compose(size)
        fast = module.denoise(prepared, latent, timesteps, composed)
        return fast, module.denoise(prepared, latent, timesteps)

    got, want = jax.jit(partial(denoiser.apply, method=both))(variables)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    ("changes", "size", "steps", "form"),
    [
        ({}, (48, 160), 20, "composed"),
        ({}, (48, 160), 1, "plain"),
        ({}, (6, 2000), 20, "plain"),
        ({"features": 64}, (48, 160), 20, "plain"),
        ({"dtype": jnp.bfloat16}, (48, 160), 20, "plain"),
        ({"config": DenoiserConfig()}, (48, 160), 20, "plain"),
        ({"config": DenoiserConfig("paper")}, (48, 160), 20, "plain"),
    ],
)
def test_auto_composes_large_runs_of_wide_networks_on_the_cpu(changes, size, steps, form):
    options = {"config": DenoiserConfig(fuse=True), "features": 256, "latent_channels": 16}
    denoiser = Denoiser(**(options | changes))
    with platform.tracing_for("cpu"):
        assert sampler_form("auto", denoiser, size, steps) == form
        assert sampler_form("plain", denoiser, size, steps) == "plain"
    with platform.tracing_for("cuda"):
        assert sampler_form("auto", denoiser, size, steps) == "plain"


def test_impossible_forms_are_refused():
    with pytest.raises(ValueError, match="'composed' needs"):
        replace(TINY, denoiser=DenoiserConfig(hidden_features=8), sampler_form="composed")
    with pytest.raises(ValueError, match="not 6x80"):
        sampler_form("composed", Denoiser(FUSED, 8, 4), (6, 80), 20)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_composed_form_can_be_initialised_with_few_stages(factor):
    codec = replace(TINY.codec, factor=factor)
    shapes = [
        jax.eval_shape(
            diffusion_depth.build(replace(TINY, codec=codec, sampler_form=form)).init_variables,
            jax.random.key(0),
        )
        for form in ("composed", "plain")
    ]
    assert shapes[0] == shapes[1]


def test_the_composed_form_is_lowered_for_any_batch_size_and_for_a_gpu():
    model = diffusion_depth.build(replace(TINY, sampler_form="composed"))
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [
        jax.ShapeDtypeStruct((batch, *size), jnp.float32) for size in ((6, 9, 8), (12, 18, 4))
    ]
    sample = jax.jit(partial(model.apply, _variables(), method="sample"))
    exported = jax.export.export(sample, platforms=["cpu", "cuda"])(*shapes)
    assert exported.out_avals[0].shape[1:] == (12, 18, 4)
