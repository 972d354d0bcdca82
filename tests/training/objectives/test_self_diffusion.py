"""Self-diffusion against recorded training steps of the published code, and its guarantees."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import DenoiserConfig
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.ops import losses
from diffdepth_jax.ops.diffusion import posterior_mean_weight
from diffdepth_jax.training.objectives import pixel, self_diffusion
from diffdepth_jax.training.objectives.pixel import SilogConfig
from diffdepth_jax.training.objectives.self_diffusion import Config, Draws
from diffdepth_jax.weights.rules import convert, export

MODEL = diffusion_depth.Config(
    encoder=resnet.Config(depths=(1, 1), widths=(4, 8)),
    neck=NeckConfig(8),
    codec=CodecConfig(latent_channels=4, initial_depth=8.0),
    denoiser=DenoiserConfig(hidden_features=8),
    diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=3),
)


def _recorded_norm(gradient):
    """The norm as recorded: eight float32 running sums of squares, in PyTorch's order.

    With ten million entries or more such a sum loses up to 0.3%, so ours must be computed the same
    way.
    """
    squares = np.square(np.ravel(gradient), dtype=np.float32)
    whole = squares[: squares.size // 8 * 8].reshape(-1, 8)
    lanes = np.cumsum(whole, axis=0, dtype=np.float32)[-1] if len(whole) else np.zeros(8)
    return float(np.sqrt(np.float64(lanes).sum() + np.float64(squares[whole.size :]).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["res18_train", "swin_hahi_train"])
def test_recorded_training_step_is_reproduced(golden, name):
    case = golden(name)
    recorded, state_dict = case.arrays, case.state_dict
    config = diffusion_depth.infer({key: array.shape for key, array in state_dict.items()})
    config = diffusion_depth.with_arguments(config, {"inference_steps": case.meta["steps"]})
    if config.encoder.name == "swin":
        config = replace(config, encoder=replace(config.encoder, drop_path_rate=0.0))
    model, table = diffusion_depth.build(config), diffusion_depth.rules(config)
    variables = convert(state_dict, table, jax.eval_shape(model.init_variables, jax.random.key(0)))
    del state_dict
    batch = {
        "image": jnp.asarray(recorded["image"]),
        "depth": jnp.asarray(recorded["depth_gt"]),
        "valid_mask": jnp.asarray(recorded["depth_gt"] > 0),
    }
    draws = Draws(
        noise=jnp.asarray(recorded["x_T"]),
        ddim_noise=jnp.asarray(recorded["ddim_noise"]),
        timesteps=jnp.asarray(recorded["ddim_timesteps"].astype(np.int32)),
        key=jax.random.key(0),
    )
    # The published L1 and L2 are sums over the two images, ours are means.
    objective = Config(l1=2.0, l2=2.0, ddim=1.0, max_depth=case.meta["max_depth"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(params, batch_stats):
        terms, aux = self_diffusion.terms_from_draws(
            objective, model, params, batch_stats, batch, draws
        )
        return pixel.weighted_sum(objective, terms, jnp.int32(0), 1), aux

    (loss, aux), gradients = step(variables["params"], variables["batch_stats"])
    for got, want in (
        (loss, "total_loss"),
        (2 * aux.scalars["l1"], "l1_loss"),
        (2 * aux.scalars["l2"], "l2_loss"),
        (aux.scalars["ddim"], "ddim_loss"),
    ):
        np.testing.assert_allclose(got, recorded[want], rtol=1e-5, err_msg=want)

    names = [key for key in case.meta["shapes"] if "num_batches_tracked" not in key]
    results = export({"params": gradients, "batch_stats": aux.batch_stats}, table, names)
    norms = json.loads(str(recorded["grad_norms"]))
    largest = max(norm for norm in norms.values() if norm is not None)
    compared = {key: norm for key, norm in norms.items() if norm and norm > 1e-4 * largest}
    assert len(compared) > 50
    errors = {key: _recorded_norm(results[key]) / norm - 1 for key, norm in compared.items()}
    assert max(map(abs, errors.values())) <= 1e-3, errors

    statistics = json.loads(str(recorded["bn_after"]))
    moved = {key: value for key, value in statistics.items() if key in results}
    assert {key for key in statistics if key not in moved} <= {
        f"depth_head.convup_fp.1.running_{part}" for part in ("mean", "var")
    }
    for key, (mean, deviation) in moved.items():
        values = np.float64(results[key])
        scale = max(abs(mean), deviation)
        assert abs(values.mean() - mean) <= 1e-4 * scale, key
        if values.size > 1:
            assert abs(values.std(ddof=1) - deviation) <= 1e-4 * scale, key


@functools.cache
def _model(config=MODEL):
    model = diffusion_depth.build(config)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    rng = np.random.default_rng(0)

    # With NumPy: compiling the initialisation would take longer than the whole test.
    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
        offset = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(offset + scale * rng.standard_normal(leaf.shape), jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def _batch(seed=0, size=(16, 24)):
    keys = jax.random.split(jax.random.key(seed), 3)
    depth = jax.random.uniform(keys[1], (2, *size, 1), minval=2.0, maxval=30.0)
    valid_mask = jax.random.uniform(keys[2], depth.shape) < 0.3
    return {
        "image": jax.random.normal(keys[0], (2, *size, 3)),
        "depth": jnp.where(valid_mask, depth, 0.0),
        "valid_mask": valid_mask,
    }


STEPS = 10  # length of the run


@functools.cache
def _step(objective, config=MODEL, build=self_diffusion.build):
    """The compiled loss with its gradients."""
    model, variables = _model(config)
    loss = build(objective, model, STEPS)
    gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return functools.partial(gradients, variables["params"], variables["batch_stats"])


KEY, FIRST = jax.random.key(1), jnp.int32(0)
ALL = Config(l1=1.0, l2=0.5, silog=2.0, latent=0.25, ddim=0.125, ddim_weighting="posterior_mean")


def test_loss_is_the_weighted_sum_of_its_terms():
    (loss, aux), _ = _step(ALL)(_batch(), KEY, FIRST)
    terms = {"l1": 1.0, "l2": 0.5, "silog": 2.0, "latent": 0.25, "ddim": 0.125}
    want = sum(weight * aux.scalars[name] for name, weight in terms.items())
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    assert all(np.isfinite(value) for value in aux.scalars.values())


def test_terms_match_the_models_own_methods():
    """The training step written out with public methods."""
    model, variables = _model()
    batch = _batch()
    (_, aux), _ = _step(ALL)(batch, KEY, FIRST)
    draws = self_diffusion.draw(model, batch["image"].shape, KEY)

    def call(method, *inputs, train=True):
        options = {"train": True, "mutable": ["batch_stats"]} if train else {}
        output = jax.jit(functools.partial(model.apply, method=method, **options))(
            variables, *inputs
        )
        return output[0] if train else output

    condition = call("encode_image", batch["image"])
    latent = call("sample", condition, draws.noise, train=False)
    depth = call("decode_latent", latent)
    encoded = call("encode_depth", batch["depth"])
    schedule = model.config.diffusion.schedule
    alpha = jnp.asarray(schedule.alphas_cumprod)[draws.timesteps][:, None, None, None]
    noisy = alpha**0.5 * latent + (1 - alpha) ** 0.5 * draws.ddim_noise
    predicted = call("predict_noise", condition, noisy, draws.timesteps, train=False)
    error = jnp.mean((predicted - draws.ddim_noise) ** 2, (1, 2, 3))
    masked = (depth, batch["depth"], batch["valid_mask"])
    want = {
        "l1": losses.l1(*masked, max_depth=88.0),
        "l2": losses.l2(*masked, max_depth=88.0),
        "silog": losses.silog(*masked),
        "latent": jnp.mean((latent - encoded) ** 2, (1, 2, 3)),
        "ddim": error * posterior_mean_weight(schedule, draws.timesteps),
    }
    for name, values in want.items():
        np.testing.assert_allclose(aux.scalars[name], values.mean(), rtol=1e-4, err_msg=name)


def test_the_same_key_gives_the_same_step():
    step = _step(ALL)
    one, again = step(_batch(), KEY, FIRST), step(_batch(), KEY, FIRST)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    (other, _), _ = step(_batch(), jax.random.key(2), FIRST)
    assert other != one[0][0]


def test_every_parameter_gets_a_gradient_and_every_statistic_moves():
    _, variables = _model()
    (_, aux), gradients = _step(ALL)(_batch(), KEY, FIRST)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient != 0), path
    moved = jax.tree.map(
        lambda new, old: bool((new != old).any()), aux.batch_stats, variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_unmeasured_pixels_may_hold_anything(garbage):
    batch = _batch()
    dirty = batch | {"depth": jnp.where(batch["valid_mask"], batch["depth"], garbage)}
    step = _step(ALL)
    jax.tree.map(np.testing.assert_array_equal, step(dirty, KEY, FIRST), step(batch, KEY, FIRST))


def test_an_image_without_measurements_is_harmless():
    batch = _batch()
    batch["valid_mask"] = batch["valid_mask"].at[0].set(False)
    (loss, aux), gradients = _step(ALL)(batch, KEY, FIRST)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((aux, gradients)))


def test_rematerialisation_changes_only_memory():
    want = _step(ALL)(_batch(), KEY, FIRST)
    got = _step(ALL, replace(MODEL, remat="none"))(_batch(), KEY, FIRST)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(
            g, w, rtol=1e-3, atol=1e-5 * float(np.abs(w).max()) + 1e-6
        ),
        got,
        want,
    )


def test_the_gradient_reaches_the_encoder_only_through_the_sampler():
    """With pixel losses only, the path to the encoder goes through every step of the sampler."""
    objective = Config(ddim=0.0)
    _, gradients = _step(objective)(_batch(), KEY, FIRST)
    assert np.abs(gradients["encoder"]["stage0_block0"]["conv1"]["kernel"]).max() > 0
    # The codec's encoder plays no part in the release's loss.
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients["codec"]["encoder"]))


def test_draws_are_distinct_and_in_range():
    model, _ = _model()
    draws = self_diffusion.draw(model, (64, 16, 24, 3), KEY)
    assert draws.noise.shape == draws.ddim_noise.shape == (64, 8, 12, 4)
    assert not np.allclose(draws.noise, draws.ddim_noise)
    assert draws.timesteps.min() >= 0 and draws.timesteps.max() < 1000
    assert len(np.unique(draws.timesteps)) > 50


COUNTS = (1, 3)
FEW = replace(MODEL, diffusion=replace(MODEL.diffusion, timestep_spacing="trailing"))


@functools.cache
def _key_that_draws(count):
    model, _ = _model(FEW)
    for seed in range(100):
        key = jax.random.key(seed)
        if COUNTS[self_diffusion.draw(model, (2, 16, 24, 3), key, COUNTS).steps.index] == count:
            return key
    raise AssertionError(f"{count} is never drawn")


def test_an_update_runs_the_number_of_steps_that_it_draws():
    key = _key_that_draws(1)
    (got, aux), gradients = _step(Config(step_counts=COUNTS), FEW)(_batch(), key, FIRST)
    one = replace(FEW, diffusion=replace(FEW.diffusion, num_inference_steps=1))
    (want, expected), wanted = _step(Config(), one)(_batch(), key, FIRST)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-2, atol=1e-3 * abs(w).max() + 1e-5),
        gradients,
        wanted,
    )
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5),
        aux.batch_stats["encoder"],
        expected.batch_stats["encoder"],
    )


@pytest.mark.parametrize("count", COUNTS)
def test_the_decoders_statistics_follow_the_models_own_number_of_steps(count):
    _, variables = _model(FEW)
    step = _step(Config(step_counts=COUNTS), FEW)
    (_, aux), _ = step(_batch(), _key_that_draws(count), FIRST)
    before, after = (
        jax.tree.leaves(statistics["codec"]["decoder"])
        for statistics in (variables["batch_stats"], aux.batch_stats)
    )
    for old, new in zip(before, after, strict=True):
        assert (old == new).all() == (count != 3)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((1, 2), "lack the model's own num_inference_steps 3"),
        ((3, 2000), "2000"),
    ],
)
def test_numbers_of_steps_fit_the_sampler(counts, message):
    model, _ = _model()
    with pytest.raises(ConfigError, match=message):
        self_diffusion.build(Config(step_counts=counts), model, STEPS)


@pytest.mark.parametrize("counts", [(1, 1, 3), (0, 3)])
def test_impossible_numbers_of_steps_are_refused(counts):
    with pytest.raises(ValueError, match="step_counts are"):
        Config(step_counts=counts)


def test_images_that_the_codec_does_not_divide_are_refused():
    model, variables = _model()
    loss = self_diffusion.build(ALL, model, STEPS)
    with pytest.raises(ValueError, match="17x24 pixels are not divisible by the codec's factor 2"):
        loss(variables["params"], variables["batch_stats"], _batch(size=(17, 24)), KEY, FIRST)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"l1": -1.0}, "must not be negative"),
        ({"l1": 0.0, "l2": 0.0, "ddim": 0.0}, "or all zero"),
        ({"max_depth": 0.0}, r"max_depth is 0\.0"),
    ],
)
def test_impossible_weights_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_the_papers_weighting_is_for_predicted_noise():
    config = replace(MODEL, diffusion=replace(MODEL.diffusion, prediction_type="sample"))
    with pytest.raises(ValueError, match="the model's is 'sample'"):
        self_diffusion.build(ALL, diffusion_depth.build(config), STEPS)


def test_impossible_silog_constants_are_refused():
    with pytest.raises(ValueError, match="variance_focus"):
        SilogConfig(variance_focus=1.5)
