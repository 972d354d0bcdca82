"""The network against recorded runs of the published one, and what holds for any config."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import registry
from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import DenoiserConfig
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.models.networks.diffusion_depth import Config, DiffusionConfig
from diffdepth_jax.ops.diffusion import ddim_sample
from diffdepth_jax.weights.rules import convert, export

TINY = Config(
    encoder=resnet.Config(depths=(1, 1), widths=(4, 8)),
    neck=NeckConfig(8),
    codec=CodecConfig(latent_channels=4),
    denoiser=DenoiserConfig(hidden_features=8),
    diffusion=DiffusionConfig(num_inference_steps=3),
)
HEAD = "depth_head."


def _error(got, want):
    want = np.asarray(want, np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))


def _load(case):
    state_dict = case.state_dict
    config = diffusion_depth.infer({name: array.shape for name, array in state_dict.items()})
    model = diffusion_depth.build(config)
    expected = jax.eval_shape(model.init_variables, jax.random.key(0))
    return model, convert(state_dict, diffusion_depth.rules(config), expected)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("res18", "plain"),
        pytest.param("swin_hahi", "plain", marks=pytest.mark.slow),
        pytest.param("swin_hahi", "composed", marks=pytest.mark.slow),
        pytest.param("mpvit", "composed", marks=pytest.mark.slow),
    ],
)
def test_recorded_run_is_reproduced(golden, name, form):
    case = golden(name)
    model, variables = _load(case)
    model = diffusion_depth.build(replace(model.config, sampler_form=form))
    recorded = {key: jnp.asarray(array) for key, array in case.arrays.items()}

    @jax.jit
    def run(variables):
        def forward(module):
            condition = module.encode_image(recorded["image"])
            latent, trajectory = module.sample(
                condition, recorded["x_T"], case.meta["steps"], return_trajectory=True
            )
            timesteps = jnp.full(len(condition), recorded["t_first"])
            return {
                "cond": condition,
                "eps_first": module.predict_noise(condition, recorded["x_T"], timesteps),
                "x_after_step1": trajectory[0],
                "trajectory_rms": jnp.sqrt(jnp.mean(trajectory**2, (1, 2, 3, 4))),
                "x_0": latent,
                "gt_latent": module.encode_depth(recorded["depth_gt"]),
                "depth_pred": module.decode_latent(latent),
            }

        return model.apply(variables, method=forward)

    got = run(variables)
    depth, want = np.asarray(got.pop("depth_pred")), case.arrays["depth_pred"]
    relative = np.abs(depth - want) / np.maximum(np.abs(want), 1e-3)
    errors = {key: case.error(key, array) for key, array in got.items()}
    assert max(errors.values()) <= 1e-5, errors
    assert np.percentile(relative, 99) <= 1e-4


def test_weights_survive_a_round_trip(golden):
    case = golden("res18")
    model, variables = _load(case)
    table = diffusion_depth.rules(model.config)
    back = export(variables, table, case.state_dict)
    skipped = {name for name in case.state_dict if name not in back}
    assert all("num_batches_tracked" in name or "convup_fp" in name for name in skipped)
    for name, array in back.items():
        np.testing.assert_array_equal(array, case.state_dict[name])


def _tiny_shapes(golden):
    """res18 with the head's names as recorded."""
    return {name: tuple(shape) for name, shape in golden("res18").meta["shapes"].items()}


def _codec_shapes(kind):
    """Names and shapes of the published codecs."""
    root, norm = f"{HEAD}depth_transform.", ("weight", "bias", "running_mean", "running_var")

    def normed(name, channels, inputs):
        return {f"{name}.0.weight": (channels, inputs, 3, 3)} | {
            f"{name}.1.{part}": (channels,) for part in norm
        }

    if kind == "pointwise":
        shapes = {f"conv_transform.{i}.weight": (16, c, 1, 1) for i, c in ((0, 1), (1, 16))}
    else:
        shapes = {}
        for index in range(3 if kind == "factor4" else 2):
            shapes |= normed(f"conv_transform.{index}", 16, 16 if index else 1)
    inverse = "conv_inv_transform"
    if kind == "factor1":
        shapes |= normed(f"{inverse}.0", 16, 16) | normed(f"{inverse}.1", 1, 16)
    else:
        ups = 2 if kind == "factor4" else 1
        for index in range(ups):
            shapes[f"{inverse}.{index}.weight"] = (16, 16, 4, 4)
            shapes[f"{inverse}.{index}.bias"] = (16,)
        shapes |= {f"{inverse}.{ups}.{part}": (16,) for part in norm}
        shapes |= {f"{inverse}.{ups + 2}.0.weight": (1, 16, 3, 3)}
        shapes |= {f"{inverse}.{ups + 2}.0.bias": (1,)}
    return {root + name: shape for name, shape in shapes.items()}


def _converts(shapes, config):
    model = diffusion_depth.build(config)
    expected = jax.eval_shape(model.init_variables, jax.random.key(0))
    arrays = {name: np.broadcast_to(np.float32(0.5), shape) for name, shape in shapes.items()}
    return convert(arrays, diffusion_depth.rules(config), expected)


@pytest.mark.parametrize("kind", ["factor1", "factor2", "factor4", "pointwise"])
def test_the_codec_is_inferred_from_names(golden, kind):
    shapes = _tiny_shapes(golden)
    shapes = {name: s for name, s in shapes.items() if "depth_transform" not in name}
    shapes |= _codec_shapes(kind)
    config = diffusion_depth.infer(shapes)
    assert config.codec == CodecConfig(
        {"factor1": 1, "factor4": 4}.get(kind, 2), pointwise=kind == "pointwise"
    )
    _converts(shapes, config)


def test_heads_are_inferred_from_names(golden):
    shapes = _tiny_shapes(golden)
    assert diffusion_depth.infer(shapes) == diffusion_depth.VARIANTS["res18"]
    convolutions = {
        f"{HEAD}model.upsample_fuse.conv{letter}.conv.{part}": shape
        for letter in "AB"
        for part, shape in (("weight", (256, 256, 3, 3)), ("bias", (256,)))
    }
    fused = diffusion_depth.infer(shapes | convolutions)
    assert fused.denoiser.fuse and not fused.neck.hahi
    _converts(shapes | convolutions, fused)


@pytest.mark.parametrize(("name", "variant"), [("swin_hahi", "swin_large_hahi")])
def test_swin_heads_are_inferred_from_names(golden, name, variant):
    shapes = {key: tuple(shape) for key, shape in golden(name).meta["shapes"].items()}
    config = diffusion_depth.infer(shapes)
    want = diffusion_depth.VARIANTS[variant]
    assert (config.neck, config.denoiser) == (want.neck, want.denoiser)
    # `_Swin_ADD`: the same without HAHI, with a deconvolution that is never used.
    shapes = {key: shape for key, shape in shapes.items() if "hahineck" not in key}
    shapes[f"{HEAD}convup_fp.0.weight"] = (256, 256, 2, 2)
    config = diffusion_depth.infer(shapes)
    want = diffusion_depth.VARIANTS["swin_large"]
    assert (config.neck, config.denoiser) == (want.neck, want.denoiser)
    _converts(shapes, config)


def test_mpvit_small_is_inferred_from_names(golden):
    shapes = {key: tuple(shape) for key, shape in golden("mpvit").meta["shapes"].items()}
    assert diffusion_depth.infer(shapes) == diffusion_depth.VARIANTS["mpvit_small"]


def test_other_weights_are_not_mistaken_for_diffusion_depth(golden):
    shapes = _tiny_shapes(golden)
    assert diffusion_depth.infer({}) is None
    assert diffusion_depth.infer({"conv1.weight": (64, 3, 7, 7)}) is None
    encoder = {name: s for name, s in shapes.items() if not name.startswith(HEAD)}
    assert diffusion_depth.infer(encoder) is None


def test_one_wrong_shape_in_the_head_is_named(golden):
    """Whichever it is: the others still determine the architecture."""
    shapes = _tiny_shapes(golden)
    right = diffusion_depth.infer(shapes)
    model = diffusion_depth.build(right)
    expected = jax.eval_shape(model.init_variables, jax.random.key(0))
    table = diffusion_depth.rules(right)
    names = [
        name
        for name in shapes
        if name.startswith(HEAD) and not re.search("num_batches|convup_fp", name)
    ]
    assert len(names) == 70
    for index, name in enumerate(names):
        first, *others = shapes[name]
        wrong = shapes | {name: (first + 1, *others)}
        config = diffusion_depth.infer(wrong)
        if name.endswith("time_embedding.weight"):
            assert config.denoiser.time_table == first + 1  # any number of rows is right
            continue
        assert config == right, name
        if index % 10 == 0:
            arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in wrong.items()}
            with pytest.raises(WeightsError, match=re.escape(name)) as error:
                convert(arrays, table, expected)
            assert str(error.value).count("->") == 1


def test_arguments_of_a_checkpoint_are_used():
    config = diffusion_depth.with_arguments(
        TINY, {"inference_steps": 7, "max_depth": 88, "head_specify": "x"}
    )
    assert (config.diffusion.num_inference_steps, config.max_depth) == (7, 88.0)
    assert diffusion_depth.with_arguments(TINY, {}) == TINY
    with pytest.raises(ValueError, match="max_depth of the checkpoint is 'deep'"):
        diffusion_depth.with_arguments(TINY, {"max_depth": "deep"})


@pytest.mark.parametrize("name", diffusion_depth.VARIANTS)
def test_configs_survive_json(name):
    config = diffusion_depth.VARIANTS[name]
    assert from_mapping(Config, to_mapping(config), resolve=registry.module) == config


@functools.cache
def _tiny(config=TINY):
    model = diffusion_depth.build(config)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2
        value = scale * rng.standard_normal(leaf.shape)
        if path[-1].key in ("var", "scale"):
            value = 1 + np.abs(value)
        return jnp.asarray(value, jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def _image(height, width):
    return jax.random.normal(jax.random.key(5), (2, height, width, 3))


def _noise(model, image):
    return jax.random.normal(jax.random.key(6), model.latent_shape(image.shape))


@pytest.mark.parametrize(
    ("codec", "size", "latent"),
    [
        (CodecConfig(2, 4), (17, 23), (9, 12)),
        (CodecConfig(4, 4), (17, 22), (5, 6)),
        (CodecConfig(1, 4), (13, 11), (13, 11)),
    ],
)
def test_depth_has_the_size_of_the_image(codec, size, latent):
    model, variables = _tiny(replace(TINY, codec=codec))
    image = _image(*size)
    assert model.latent_shape(image.shape) == (2, *latent, 4)
    noise = _noise(model, image)
    apply = jax.jit(model.apply)
    depth = apply(variables, image, noise)
    assert depth.shape == (2, *size, 1) and depth.dtype == jnp.float32
    assert (depth > 0).all() and np.isfinite(depth).all()
    # Images of a batch do not affect each other, and border pixels depend on their image.
    changed = apply(variables, image.at[1, -1, -1].add(5.0), noise)
    np.testing.assert_allclose(changed[0], depth[0], rtol=1e-5)
    assert not np.allclose(changed[1, -1, -1], depth[1, -1, -1], rtol=1e-5)


def test_the_whole_equals_its_parts_in_sequence():
    model, variables = _tiny()
    image = _image(16, 20)
    noise = _noise(model, image)

    def call(method, *inputs):
        return jax.jit(functools.partial(model.apply, method=method))(variables, *inputs)

    condition = call("encode_image", image)
    parts = call("decode_latent", call("sample", condition, noise))
    whole = jax.jit(model.apply)(variables, image, noise)
    np.testing.assert_allclose(whole, parts, rtol=1e-4)
    fewer = jax.jit(functools.partial(model.apply, num_inference_steps=2))(variables, image, noise)
    assert not np.allclose(whole, fewer)


@pytest.mark.parametrize(
    "changes", [{"timestep_spacing": "trailing"}, {"clip_sample": 0.5}], ids=["spacing", "clip"]
)
def test_the_sampler_follows_the_config(changes):
    diffusion = replace(TINY.diffusion, num_inference_steps=2, **changes)
    model, variables = _tiny(replace(TINY, diffusion=diffusion))
    condition = jax.random.normal(jax.random.key(1), (2, 6, 7, 8))
    noise = jax.random.normal(jax.random.key(2), (2, 6, 7, 4))
    options = {name.removeprefix("timestep_"): value for name, value in changes.items()}

    @jax.jit
    def run(variables):
        def denoise(latent, timestep):
            timesteps = jnp.full(len(latent), timestep)
            method = "predict_noise"
            return model.apply(variables, condition, latent, timesteps, method=method)

        want = ddim_sample(diffusion.schedule, denoise, noise, 2, **options)
        plain = ddim_sample(diffusion.schedule, denoise, noise, 2)
        return model.apply(variables, condition, noise, method="sample"), want, plain

    got, want, plain = run(variables)
    assert _error(got, want) < 1e-5
    assert _error(got, plain) > 1e-2


def test_sampler_is_the_loop_over_its_public_parts():
    """predict_noise and the update rule, step by step in float64."""
    model, variables = _tiny()
    condition = jax.random.normal(jax.random.key(1), (2, 6, 7, 8))
    noise = jax.random.normal(jax.random.key(2), (2, 6, 7, 4))
    sample = functools.partial(model.apply, return_trajectory=True, method="sample")
    _, trajectory = jax.jit(sample)(variables, condition, noise)
    predict = jax.jit(functools.partial(model.apply, method="predict_noise"))
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    latent = np.asarray(noise, np.float64)
    for timestep, got in zip((666, 333, 0), trajectory, strict=True):
        timesteps = jnp.full(2, timestep)
        output = np.float64(
            predict(variables, condition, jnp.asarray(latent, jnp.float32), timesteps)
        )
        before = alphas[timestep - 333] if timestep else 1.0
        clean = (latent - (1 - alphas[timestep]) ** 0.5 * output) / alphas[timestep] ** 0.5
        latent = before**0.5 * clean + (1 - before) ** 0.5 * output
        np.testing.assert_allclose(got, latent, rtol=1e-4, atol=1e-4)


def test_wrong_noise_is_refused_naming_the_right_shape():
    model, variables = _tiny()
    with pytest.raises(ValueError, match=r"must be \(2, 9, 12, 4\)"):
        model.apply(variables, _image(17, 23), jnp.zeros((2, 8, 12, 4)))


def test_stochastic_sampling_needs_a_key_and_is_repeatable():
    model, variables = _tiny(replace(TINY, diffusion=replace(TINY.diffusion, eta=1.0)))
    condition, noise = jnp.ones((1, 6, 6, 8)), jnp.ones((1, 6, 6, 4))
    with pytest.raises(ValueError, match="needs a key"):
        model.apply(variables, condition, noise, method="sample")
    sample = jax.jit(functools.partial(model.apply, method="sample"))
    one, again, other = (
        sample(variables, condition, noise, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_half_precision_gives_single_precision_depth(variant):
    config = replace(TINY, denoiser=replace(TINY.denoiser, variant=variant, num_heads=2))
    model, variables = _tiny(config)
    image = _image(16, 16)
    noise = _noise(model, image)
    half = diffusion_depth.build(config, jnp.bfloat16)
    want, got = (jax.jit(m.apply)(variables, image, noise) for m in (model, half))
    assert got.dtype == jnp.float32
    assert np.median(np.abs(np.log(got) - np.log(want))) < 0.2
    assert not np.array_equal(got, want)


def test_the_latent_stays_in_single_precision():
    _, variables = _tiny()
    half = diffusion_depth.build(TINY, jnp.bfloat16)
    condition, noise = jnp.ones((1, 6, 6, 8)), jnp.ones((1, 6, 6, 4))
    sample = functools.partial(half.apply, method="sample")
    steps = [
        equation.params["jaxpr"].jaxpr
        for equation in jax.make_jaxpr(sample)(variables, condition, noise).jaxpr.eqns
        if equation.primitive.name == "scan"
    ]
    assert len(steps) == 1
    (carried,) = steps[0].outvars
    assert carried.aval.shape == noise.shape and carried.aval.dtype == jnp.float32
    assert "bf16" in str(steps[0])


@pytest.mark.parametrize(("old", "new"), [(True, "full"), (False, "none")])
def test_older_checkpoints_have_a_boolean_remat(old, new):
    mapping = to_mapping(TINY) | {"remat": old}
    assert from_mapping(Config, mapping, resolve=registry.module).remat == new
    with pytest.raises(ConfigError, match="remat is 'yes'"):
        from_mapping(Config, mapping | {"remat": "yes"}, resolve=registry.module)


def test_initialisation_creates_the_variables_of_every_method():
    model = diffusion_depth.build(TINY)
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    assert set(variables) == {"params", "batch_stats"}
    assert set(variables["params"]) == {"encoder", "neck", "codec", "denoiser"}
    assert set(variables["params"]["codec"]) == {"encoder", "decoder"}
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neck": NeckConfig(6)}, "neck.features 6"),
        ({"codec": CodecConfig(latent_channels=6)}, "latent_channels 6"),
        ({"denoiser": DenoiserConfig(time_table=500)}, "exceed denoiser.time_table 500"),
        ({"denoiser": DenoiserConfig("paper", num_heads=3)}, "num_heads 3"),
        ({"max_depth": 0.0}, r"max_depth is 0\.0"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 0}, "not 0"),
        ({"num_inference_steps": 1001}, "not 1001"),
        ({"beta_start": -0.1}, r"not -0\.1"),
        ({"eta": 1.5}, r"eta is 1\.5"),
        ({"clip_sample": 0.0}, r"clip_sample is 0\.0"),
    ],
)
def test_impossible_diffusion_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**changes)
