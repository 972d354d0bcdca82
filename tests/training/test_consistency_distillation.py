"""Consistency distillation: points on the teacher's trajectories, the loss, and errors."""

import dataclasses
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.networks import diffusion_depth, regression
from diffdepth_jax.models.networks.network import Denoises
from diffdepth_jax.ops import losses
from diffdepth_jax.ops.diffusion import ddim_sample, ddim_step, inference_timesteps
from diffdepth_jax.training import experiment, loop
from diffdepth_jax.training.objectives import consistency_distillation
from diffdepth_jax.training.objectives.consistency_distillation import Config
from diffdepth_jax.training.teacher import check_distillable, make_trajectory_points

MODEL = diffusion_depth.Config(
    encoder=resnet.Config(),
    codec=CodecConfig(factor=1),
    diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=4, timestep_spacing="trailing"),
)
SCHEDULE = MODEL.diffusion.schedule
KEY = jax.random.key(0)


class Toy(nn.Module, Denoises):
    """One number per part; latents have the size of the image."""

    config: diffusion_depth.Config

    def setup(self):
        for name in ("encoder", "denoiser", "decoder"):
            setattr(self, name, self.param(name, nn.initializers.constant(0.5), ()))

    num_inference_steps = 4

    def timesteps(self, num_inference_steps=None):
        return inference_timesteps(1000, num_inference_steps or 4, "trailing")

    def latent_shape(self, image_shape):
        return (*image_shape[:3], 1)

    def encode_image(self, image, train=False):
        return self.encoder * image[..., :1]

    def predict_noise(self, condition, latent, timesteps):
        return jnp.tanh(self.denoiser * condition + latent / (2 + timesteps[:, None, None, None]))

    def sample(self, condition, noise, count, key=None, return_trajectory=False):
        def denoise(latent, timestep):
            return self.predict_noise(condition, latent, jnp.full(len(latent), timestep))

        return ddim_sample(
            SCHEDULE, denoise, noise, count, spacing="trailing", return_trajectory=return_trajectory
        )

    def decode_latent(self, latent, train=False):
        return jnp.exp(self.decoder * latent)


TOY = Toy(MODEL)
VALUES = {"encoder": 0.4, "denoiser": 0.3, "decoder": 0.02}
PARAMS = {name: jnp.float32(value) for name, value in VALUES.items()}
IMAGE = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3, 4, 3)), jnp.float32)


def _points(params=PARAMS, step=1, count=None):
    function = make_trajectory_points(TOY, count)
    return function({"params": params}, IMAGE, KEY, jnp.uint32(step))


def test_points_are_neighbours_on_a_trajectory_of_the_teacher():
    points = _points()
    known = [999, 749, 499, 249, -1]
    output = TOY.apply(
        {"params": PARAMS},
        0.4 * IMAGE[..., :1],
        points["latent"],
        points["timestep"],
        method="predict_noise",
    )
    for index, timestep in enumerate(points["timestep"].tolist()):
        after = points["next_timestep"][index]
        assert after == known[known.index(timestep) + 1]
        one = slice(index, index + 1)
        want = ddim_step(
            SCHEDULE, output[one], points["latent"][one], jnp.int32(timestep), jnp.int32(after)
        )
        np.testing.assert_allclose(points["next_latent"][one], want, rtol=1e-4, atol=1e-4)
        if after < 0:
            np.testing.assert_array_equal(
                points["next_latent"][index], points["clean_latent"][index]
            )
    assert set(points["timestep"].tolist()) == set(known[:-1])
    assert np.abs(points["latent"] - _points(step=2)["latent"]).min() > 0
    assert set(_points(count=1)["timestep"].tolist()) == {999}


def test_points_have_no_gradient():
    gradients = jax.grad(lambda params: _points(params)["next_latent"].sum())(PARAMS)
    assert all(value == 0 for value in gradients.values())


def _batch():
    rng = np.random.default_rng(1)
    depth = rng.uniform(2, 30, (16, 3, 4, 1)).astype(np.float32)
    valid_mask = rng.uniform(size=depth.shape) < 0.5
    batch = {"image": IMAGE, "depth": depth * valid_mask, "valid_mask": valid_mask}
    return jax.tree.map(jnp.asarray, batch) | _points()


def _literal(params, batch, targets_of):
    """The consistency term; `params` make the noisier jump and `targets_of` the other one."""
    alphas = jnp.asarray(SCHEDULE.alphas_cumprod)

    def jump(params, latent, timesteps):
        alpha = alphas[timesteps][:, None, None, None]
        hidden = params["denoiser"] * params["encoder"] * IMAGE[..., :1]
        noise = jnp.tanh(hidden + latent / (2 + timesteps[:, None, None, None]))
        return (latent - (1 - alpha) ** 0.5 * noise) / alpha**0.5

    got = jump(params, batch["latent"], batch["timestep"])
    wanted = jump(targets_of, batch["next_latent"], jnp.maximum(batch["next_timestep"], 0))
    last = (batch["next_timestep"] < 0)[:, None, None, None]
    wanted = jnp.where(last, batch["clean_latent"], wanted)
    return ((got - wanted) ** 2).mean() / (batch["clean_latent"] ** 2).mean(), got


def test_loss_and_gradient_match_the_formula():
    batch = _batch()
    # A student that differs from the teacher; only the weights of the noisier jump get a gradient.
    student = PARAMS | {"denoiser": jnp.float32(0.35), "encoder": jnp.float32(0.5)}
    config = Config(l1=0.5, l2=0.0, silog=0.25, consistency=2.0)
    loss = consistency_distillation.build(config, TOY, 10)
    (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(
        student, {}, batch, KEY, jnp.int32(0)
    )

    def literal(params):
        consistency, latent = _literal(params, batch, student)
        depth = jnp.exp(params["decoder"] * latent)
        masked = (depth, batch["depth"], batch["valid_mask"])
        l1 = losses.l1(*masked, max_depth=config.max_depth).mean()
        silog = losses.silog(*masked, **dataclasses.asdict(config.silog_options)).mean()
        return 0.5 * l1 + 0.25 * silog + 2.0 * consistency, consistency

    (want, consistency), wanted = jax.value_and_grad(literal, has_aux=True)(student)
    np.testing.assert_allclose(value, want, rtol=1e-4)
    np.testing.assert_allclose(aux.scalars["consistency"], consistency, rtol=1e-4)
    assert consistency > 0
    for name in student:
        np.testing.assert_allclose(gradients[name], wanted[name], rtol=1e-3, err_msg=name)


def test_the_objective_is_for_networks_that_denoise():
    model = regression.build(regression.Config(encoder=resnet.Config()))
    with pytest.raises(ConfigError, match="'regression' does not: use 'pixel'"):
        consistency_distillation.build(Config(), model, 1)
    with pytest.raises(ConfigError, match="lack the model's own num_inference_steps 4"):
        consistency_distillation.build(Config(step_counts=(1, 2)), TOY, 1)
    with pytest.raises(ValueError, match="step_counts are"):
        Config(step_counts=(1, 1))


def _sampler(config):
    return DepthModel(diffusion_depth.build(config), {}, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": CodecConfig(factor=2)}, "codec.factor: 1 -> 2"),
        (
            {"diffusion": replace(MODEL.diffusion, beta_end=0.01)},
            r"diffusion.beta_end: 0\.02 -> 0\.01",
        ),
        ({"diffusion": replace(MODEL.diffusion, num_inference_steps=3)}, r"lack .*\[999, 666, 332"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(changes, message):
    check_distillable(_sampler(MODEL), MODEL, "FILE", None)
    with pytest.raises(ConfigError, match=f"FILE cannot be distilled: .*{message}"):
        check_distillable(_sampler(MODEL), replace(MODEL, **changes), "FILE", None)


def test_every_learnt_number_of_steps_must_be_on_the_trajectory():
    teacher = replace(MODEL, diffusion=replace(MODEL.diffusion, num_inference_steps=10))
    check_distillable(_sampler(teacher), teacher, "FILE", None, (10, 5, 1))
    with pytest.raises(ConfigError, match=r"lack .*\[999, 749, 499, 249\]"):
        check_distillable(_sampler(teacher), teacher, "FILE", None, (10, 4))


def test_a_sampler_must_be_named(tiny, tmp_path):
    tiny["objective"] = {"name": "consistency_distillation"}
    exp = experiment.from_mapping(tiny)
    with pytest.raises(ConfigError, match=r"set config\.teacher\.checkpoint"):
        loop.train(exp, tmp_path)
