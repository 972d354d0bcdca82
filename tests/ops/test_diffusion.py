"""Schedules and DDIM against literal float64 loops of the papers' formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops.conv import conv3x3
from diffdepth_jax.ops.diffusion import (
    DrawnSteps,
    Schedule,
    add_noise,
    clean_sample,
    ddim_sample,
    ddim_step,
    inference_timesteps,
    posterior_mean_weight,
    training_target,
)

SCHEDULES = ["linear", "scaled_linear", "cosine"]


def _literal_alphas_cumprod(kind, steps=1000, first=1e-4, last=0.02):
    product, result = 1.0, []
    for i in range(steps):
        if kind == "linear":
            beta = first + (last - first) * i / (steps - 1)
        elif kind == "scaled_linear":
            beta = (first**0.5 + (last**0.5 - first**0.5) * i / (steps - 1)) ** 2
        else:
            now, after = (np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2 for t in (i, i + 1))
            beta = min(1 - after / now, 0.999)
        product *= 1 - beta
        result.append(product)
    return np.array(result)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_alphas_cumprod_match_a_literal_product(kind):
    schedule = Schedule.create(beta_schedule=kind)
    assert schedule.num_train_timesteps == 1000
    assert schedule.alphas_cumprod.dtype == np.float32
    np.testing.assert_allclose(schedule.alphas_cumprod, _literal_alphas_cumprod(kind), rtol=1e-6)


def test_linear_schedule_has_the_published_end():
    assert Schedule.create().alphas_cumprod[-1] == pytest.approx(4.036e-5, rel=1e-3)


def test_timesteps_are_the_released_ones():
    assert inference_timesteps(1000, 20).tolist() == list(range(950, -1, -50))
    assert inference_timesteps(1000, 3).tolist() == [666, 333, 0]
    assert inference_timesteps(1000, 1).tolist() == [0]
    assert inference_timesteps(7, 7).tolist() == [6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ValueError, match=rf"1000 training timesteps, not {steps}"):
        inference_timesteps(1000, steps)


def test_few_timesteps_start_at_pure_noise():
    """As in table 2 of Lin et al. 2024, which counts timesteps from 1."""
    for spacing in ("trailing", "linspace"):
        assert inference_timesteps(1000, 1, spacing).tolist() == [999]
        assert inference_timesteps(7, 7, spacing).tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert inference_timesteps(1000, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert inference_timesteps(1000, 3, "trailing").tolist() == [999, 666, 332]
    assert inference_timesteps(1000, 4, "linspace").tolist() == [999, 666, 333, 0]


def test_impossible_betas_are_refused():
    with pytest.raises(ValueError, match=r"0\.5, 0\.02"):
        Schedule.create(beta_start=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Schedule.create(num_train_timesteps=0)


def _arrays(*names, shape=(2, 3, 4, 5)):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in names]


def test_add_noise_uses_each_images_own_timestep():
    sample, noise = _arrays("sample", "noise")
    got = add_noise(Schedule.create(), sample, noise, jnp.array([3, 800]))
    alphas = _literal_alphas_cumprod("linear")
    for image, timestep in enumerate((3, 800)):
        alpha = alphas[timestep]
        want = alpha**0.5 * sample[image] + (1 - alpha) ** 0.5 * noise[image]
        np.testing.assert_allclose(got[image], want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_prediction_recovers_the_sample(prediction_type):
    """For any prediction type, stepping to zero noise with the true value gives x_0."""
    schedule = Schedule.create()
    sample, noise = _arrays("sample", "noise")
    timesteps = jnp.array([400, 400])
    noisy = add_noise(schedule, sample, noise, timesteps)
    output = training_target(schedule, sample, noise, timesteps, prediction_type)
    got = ddim_step(
        schedule, output, noisy, timesteps[0], jnp.int32(-1), prediction_type=prediction_type
    )
    np.testing.assert_allclose(got, sample, atol=1e-5)
    several = jnp.array([400, 20])  # one per image
    noisy = add_noise(schedule, sample, noise, several)
    output = training_target(schedule, sample, noise, several, prediction_type)
    got = clean_sample(schedule, output, noisy, several, prediction_type)
    np.testing.assert_allclose(got, sample, atol=1e-5)


def _literal_ddim(kind, prediction_type, eta, start, denoise, timesteps, draws, limit=np.inf):
    """Equations 12 and 16 of Song et al. in float64, with PyTorch-style Python loops."""
    alphas = _literal_alphas_cumprod(kind)
    latent, trajectory = np.asarray(start, np.float64), []
    for index, timestep in enumerate(timesteps):
        alpha = alphas[timestep]
        before = 1.0 if index == len(timesteps) - 1 else alphas[timesteps[index + 1]]
        output = denoise(latent, timestep)
        if prediction_type == "epsilon":
            clean, noise = (latent - (1 - alpha) ** 0.5 * output) / alpha**0.5, output
        elif prediction_type == "sample":
            clean, noise = output, (latent - alpha**0.5 * output) / (1 - alpha) ** 0.5
        else:
            clean = alpha**0.5 * latent - (1 - alpha) ** 0.5 * output
            noise = alpha**0.5 * output + (1 - alpha) ** 0.5 * latent
        if np.isfinite(limit):
            clean = np.clip(clean, -limit, limit)
            noise = (latent - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        sigma = eta * ((1 - before) / (1 - alpha) * (1 - alpha / before)) ** 0.5
        latent = before**0.5 * clean + (1 - before - sigma**2) ** 0.5 * noise
        latent = latent + sigma * draws[index]
        trajectory.append(latent)
    return np.stack(trajectory)


@pytest.mark.parametrize(
    ("kind", "prediction_type", "eta"),
    [
        ("linear", "epsilon", 0.0),
        ("linear", "epsilon", 0.7),
        ("scaled_linear", "sample", 0.7),
        ("cosine", "v_prediction", 1.0),
    ],
)
def test_sampler_matches_a_literal_loop(kind, prediction_type, eta):
    steps, key = 6, jax.random.key(3)
    (start,) = _arrays("start")
    draws = [jax.random.normal(jax.random.fold_in(key, i), start.shape) for i in range(steps)]

    def denoise(latent, timestep):
        return 0.3 * latent / (1 + abs(latent)) + timestep / 2000

    x_0, trajectory = ddim_sample(
        Schedule.create(beta_schedule=kind),
        denoise,
        start,
        steps,
        prediction_type=prediction_type,
        eta=eta,
        key=key,
        return_trajectory=True,
    )
    timesteps = [830, 664, 498, 332, 166, 0]
    want = _literal_ddim(
        kind, prediction_type, eta, start, denoise, timesteps, np.asarray(draws, np.float64)
    )
    np.testing.assert_array_equal(x_0, trajectory[-1])
    for got, expected in zip(trajectory, want, strict=True):
        # Dividing by sqrt(alphas_cumprod) near t = T amplifies the rounding of both.
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("spacing", "timesteps"),
    [("trailing", [999, 749, 499, 249]), ("linspace", [999, 666, 333, 0])],
)
@pytest.mark.parametrize("limit", [None, 0.8])
def test_few_steps_match_a_literal_loop(spacing, timesteps, limit):
    (start,) = _arrays("start")

    def denoise(latent, timestep):
        return 0.3 * latent / (1 + abs(latent)) + timestep / 2000

    got = ddim_sample(
        Schedule.create(),
        denoise,
        start,
        4,
        spacing=spacing,
        prediction_type="v_prediction",
        clip_sample=limit,
    )
    want = _literal_ddim(
        "linear", "v_prediction", 0.0, start, denoise, timesteps, [0.0] * 4, limit or np.inf
    )[-1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert limit is None or np.abs(got).max() == np.float32(limit)  # clipping does happen here


def test_a_drawn_number_of_steps_runs_that_many():
    weights, noise = _problem()

    @jax.jit
    def drawn(weights, index):
        return jax.value_and_grad(_loss)(
            weights, noise, DrawnSteps((1, 3, 2), index), spacing="trailing", gradient_steps=2
        )

    for index, count in enumerate((1, 3, 2)):
        got, gradients = drawn(weights, index)
        want, expected = jax.value_and_grad(_loss)(
            weights, noise, count, spacing="trailing", gradient_steps=min(count, 2)
        )
        np.testing.assert_allclose(got, want, rtol=1e-4)
        _assert_same(gradients, expected)


def test_a_drawn_number_of_steps_has_no_trajectory():
    with pytest.raises(ValueError, match="fixed number of steps"):
        _loss(*_problem(), DrawnSteps((1, 2), jnp.int32(0)), return_trajectory=True)


def test_noise_needs_a_key_and_no_noise_needs_none():
    (start,) = _arrays("start")
    with pytest.raises(ValueError, match="needs a key"):
        ddim_sample(Schedule.create(), lambda latent, _: latent, start, 2, eta=1.0)
    plain = ddim_sample(Schedule.create(), lambda latent, _: latent, start, 2)
    keyed = ddim_sample(
        Schedule.create(), lambda latent, _: latent, start, 2, key=jax.random.key(0)
    )
    np.testing.assert_array_equal(plain, keyed)


@pytest.mark.parametrize("remat", ["convolutions", "full"])
def test_rematerialised_gradients_are_the_same(remat):
    (start,) = _arrays("start")

    def loss(weight, **options):
        def denoise(latent, timestep):
            return jnp.tanh(weight * latent) + 0.0 * timestep

        return (ddim_sample(Schedule.create(), denoise, start, 4, **options) ** 2).sum()

    want = jax.grad(loss)(0.7)
    got = jax.grad(loss)(0.7, remat=remat)
    assert float(want) != 0.0
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_posterior_mean_weight_turns_the_error_of_the_noise_into_that_of_the_mean():
    schedule = Schedule.create()
    sample, noise, other = _arrays("sample", "noise", "other")
    timesteps = jnp.array([1, 600])
    noisy = np.asarray(add_noise(schedule, sample, noise, timesteps), np.float64)
    betas, alphas = np.float64(schedule.betas), np.float64(schedule.alphas_cumprod)
    weight = posterior_mean_weight(schedule, timesteps)
    for image, timestep in enumerate((1, 600)):

        def mean(predicted, image=image, timestep=timestep):
            scaled = betas[timestep] / (1 - alphas[timestep]) ** 0.5 * np.float64(predicted[image])
            return (noisy[image] - scaled) / (1 - betas[timestep]) ** 0.5

        want = ((mean(noise) - mean(other)) ** 2).sum()
        got = weight[image] * ((noise[image] - other[image]) ** 2).sum()
        np.testing.assert_allclose(got, want, rtol=1e-3)


def _denoise(weights, latent, timestep):
    """A small network: a convolution, a norm, two activations, a convolution."""
    hidden = conv3x3(latent, weights[0], gradient="custom") + timestep / 1000
    hidden = hidden / jnp.sqrt(1 + jnp.mean(hidden**2, (1, 2), keepdims=True))
    hidden = jnp.tanh(jax.nn.gelu(hidden))
    return conv3x3(hidden, weights[1], gradient="custom")


def _loss(weights, noise, steps=8, **options):
    denoise = functools.partial(_denoise, weights)
    sample = ddim_sample(Schedule.create(), denoise, noise, steps, **options)
    return jnp.mean(sample**2)


def _problem():
    weights = [0.1 * array for array in _arrays("first", "second", shape=(3, 3, 8, 8))]
    (noise,) = _arrays("noise", shape=(2, 16, 16, 8))
    return weights, noise


def _compiled(**options):
    """The gradient, and the bytes that it needs besides arguments and results."""
    gradient = jax.jit(jax.grad(functools.partial(_loss, **options)))
    compiled = gradient.lower(*_problem()).compile()
    return compiled(*_problem()), compiled.memory_analysis().temp_size_in_bytes


def _assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(abs(other).max()))


def test_recomputing_more_stores_less():
    gradients, sizes = zip(
        *(_compiled(remat=remat, steps=32) for remat in ("none", "convolutions", "full")),
        strict=True,
    )
    for other in gradients[1:]:
        _assert_same(other, gradients[0])
    # "full" stores one latent per step, "convolutions" two maps more, "none" everything.
    assert sizes[0] > 1.5 * sizes[1] and sizes[1] > 1.5 * sizes[2], sizes


def test_gradients_flow_only_through_the_last_steps():
    weights, noise = _problem()

    def literal(weights):
        sample = noise
        for timestep in (750, 500, 250, 0):
            if timestep == 250:
                sample = jax.lax.stop_gradient(sample)
            output = _denoise(weights, sample, jnp.int32(timestep))
            step = (jnp.int32(timestep), jnp.int32(timestep - 250))
            sample = ddim_step(Schedule.create(), output, sample, *step)
        return jnp.mean(sample**2)

    want = jax.jit(jax.grad(literal))(weights)
    for remat in ("none", "full"):
        got, _ = _compiled(steps=4, gradient_steps=2, remat=remat)
        _assert_same(got, want)
    whole, _ = _compiled(steps=4)
    assert not np.allclose(got[0], whole[0], rtol=1e-2, atol=1e-3 * float(abs(whole[0]).max()))


def test_steps_without_gradient_store_nothing():
    _, whole = _compiled(steps=32)
    _, last = _compiled(steps=32, gradient_steps=2)
    _, two = _compiled(steps=2)
    assert last < 1.2 * two < 0.2 * whole, (last, two, whole)


def test_values_do_not_depend_on_where_gradients_flow():
    weights, noise = _problem()
    run = functools.partial(
        ddim_sample,
        Schedule.create(),
        functools.partial(_denoise, weights),
        noise,
        8,
        eta=0.5,
        key=jax.random.key(0),
        return_trajectory=True,
    )
    want, got = run(), run(gradient_steps=3)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * float(abs(other).max()))


@pytest.mark.parametrize("gradient_steps", [0, 9])
def test_impossible_numbers_of_gradient_steps_are_refused(gradient_steps):
    with pytest.raises(ValueError, match=f"gradient_steps is {gradient_steps}.* 8 steps"):
        _loss(*_problem(), gradient_steps=gradient_steps)
