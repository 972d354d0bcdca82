"""Every option of the objectives changes what it says and nothing else.

Tested on a network of a few multiplications with the methods of `DiffusionDepth`, so that each loss
can be written out here.
"""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.layers import DropPath
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import depth_anything, diffusion_depth, regression
from diffdepth_jax.models.networks.network import Denoises
from diffdepth_jax.ops import losses
from diffdepth_jax.ops.diffusion import add_noise, ddim_sample, posterior_mean_weight
from diffdepth_jax.training.objectives import ground_truth_diffusion, pixel, self_diffusion
from diffdepth_jax.training.objectives.pixel import PixelTerms, SilogConfig
from diffdepth_jax.training.objectives.self_diffusion import Config

STEPS = 10  # length of the run
KEY = jax.random.key(1)


class Toy(nn.Module, Denoises):
    """One number per part; latents have the size of the image."""

    config: diffusion_depth.Config
    drop_path_rate: float = 0.0

    def setup(self):
        self.drop_path = DropPath(self.drop_path_rate)
        for name in ("encoder", "denoiser", "decoder", "codec"):
            setattr(self, name, self.param(name, nn.initializers.constant(0.5), ()))

    def encode_image(self, image, train):
        return self.drop_path(self.encoder * image[..., :1], train)

    def predict_noise(self, condition, latent, timesteps):
        return jnp.tanh(self.denoiser * condition - 0.2 * latent)

    def sample(self, condition, noise, num_inference_steps, key, gradient_steps):
        def denoise(latent, timestep):
            return self.predict_noise(condition, latent, timestep)

        return ddim_sample(SCHEDULE, denoise, noise, 4, gradient_steps=gradient_steps)

    def decode_latent(self, latent, train):
        return jnp.exp(self.decoder * latent)

    def encode_depth(self, depth, train):
        return jnp.tanh(self.codec * depth)

    def latent_shape(self, image_shape):
        return (*image_shape[:3], 1)


MODEL = diffusion_depth.Config(
    encoder=resnet.Config(),
    codec=CodecConfig(factor=1),
    diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=4),
)
SCHEDULE = MODEL.diffusion.schedule
TOY = Toy(MODEL)
PARAMS = {"encoder": 0.4, "denoiser": 0.3, "decoder": 0.02, "codec": 0.1}
PARAMS = jax.tree.map(jnp.float32, PARAMS)


def _batch():
    rng = np.random.default_rng(0)
    depth = rng.uniform(2, 30, (2, 6, 8, 1)).astype(np.float32)
    valid_mask = rng.uniform(size=depth.shape) < 0.5
    image = rng.standard_normal((2, 6, 8, 3)).astype(np.float32)
    batch = {"image": image, "depth": depth * valid_mask, "valid_mask": valid_mask}
    return jax.tree.map(jnp.asarray, batch)


def _loss(config, step=0, params=PARAMS, build=self_diffusion.build):
    """The loss, the scalars and the gradients."""
    loss = build(config, TOY, STEPS)
    function = jax.value_and_grad(loss, has_aux=True)
    (value, aux), gradients = function(params, {}, _batch(), KEY, jnp.int32(step))
    return float(value), aux.scalars, gradients


NOTHING = {"l1": 0.0, "l2": 0.0, "silog": 0.0, "latent": 0.0, "ddim": 0.0}


@pytest.mark.parametrize("term", NOTHING)
def test_each_weight_scales_its_term(term):
    value, scalars, _ = _loss(Config(**NOTHING | {term: 3.0}))
    np.testing.assert_allclose(value, 3.0 * scalars[term], rtol=1e-6)
    assert value > 0
    assert len({float(scalars[name]) for name in NOTHING}) == len(NOTHING)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 2.0},
        {"variance_focus": 0.3},
        {"offset": 0.5},
        {"ddof": 1},
        {"reduction": "batch"},
    ],
)
def test_silog_uses_the_constants_of_the_config(options):
    batch = _batch()
    depth = batch["depth"] * 0.7 + 3.0
    masked = (depth, *pixel.ground_truth(batch))
    got, usual = (
        pixel.pixel_terms(PixelTerms(silog_options=SilogConfig(**each)), *masked)["silog"]
        for each in (options, {})
    )
    np.testing.assert_allclose(got, losses.silog(*masked, **options).mean(), rtol=1e-6)
    assert abs(got - usual) > 1e-4 * usual


def test_errors_are_of_depths_clamped_to_the_configs_limit():
    masked = (jnp.full((2, 6, 8, 1), 25.0), *pixel.ground_truth(_batch()))
    near, far = (pixel.pixel_terms(PixelTerms(max_depth=d), *masked) for d in (10.0, 88.0))
    target, valid_mask = masked[1:]
    want = np.where(valid_mask, 10 - np.minimum(target, 10), 0).sum((1, 2, 3))
    np.testing.assert_allclose(near["l1"], (want / valid_mask.sum((1, 2, 3))).mean(), rtol=1e-5)
    assert near["l1"] < far["l1"] and near["l2"] < far["l2"]


@pytest.mark.parametrize(("step", "counts"), [(0, 1.0), (4, 1.0), (5, 0.0), (9, 0.0)])
def test_auxiliary_losses_apply_for_their_share_of_the_run(step, counts):
    config = Config(l1=1.0, l2=0.5, silog=2.0, latent=0.25, ddim=0.125, auxiliary_fraction=0.5)
    value, scalars, gradients = _loss(config, step)
    weights = {"l1": counts, "l2": 0.5 * counts, "silog": 2.0, "latent": 0.25, "ddim": 0.125}
    want = sum(weight * scalars[name] for name, weight in weights.items())
    np.testing.assert_allclose(value, want, rtol=1e-6)
    without = replace(config, l1=counts, l2=0.5 * counts, auxiliary_fraction=1.0)
    _, _, expected = _loss(without, step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradients, expected)


def test_the_paper_variant_follows_the_paper():
    config = self_diffusion.VARIANTS["paper"]
    assert min(config.l1, config.l2, config.silog, config.latent, config.ddim) > 0
    assert config.auxiliary_fraction == 0.5
    release = self_diffusion.VARIANTS["release"]
    assert (release.l1, release.l2, release.silog, release.latent) == (1, 1, 0, 0)


def _ddim(weighting, diffused):
    """The DDIM term by hand."""
    batch = _batch()
    draws = self_diffusion.draw(TOY, batch["image"].shape, KEY)
    condition = PARAMS["encoder"] * batch["image"][..., :1]
    clean = jnp.tanh(PARAMS["codec"] * batch["depth"])
    if diffused == "refined":

        def denoise(latent, timestep):
            return jnp.tanh(PARAMS["denoiser"] * condition - 0.2 * latent)

        clean = ddim_sample(SCHEDULE, denoise, draws.noise, 4)
    noisy = add_noise(SCHEDULE, clean, draws.ddim_noise, draws.timesteps)
    predicted = jnp.tanh(PARAMS["denoiser"] * condition - 0.2 * noisy)
    error = ((predicted - draws.ddim_noise) ** 2).mean((1, 2, 3))
    if weighting == "posterior_mean":
        error *= posterior_mean_weight(SCHEDULE, draws.timesteps)
    return error.mean()


def test_the_ddim_loss_compares_noise_or_posterior_means():
    for weighting in ("noise", "posterior_mean"):
        _, scalars, _ = _loss(Config(ddim_weighting=weighting))
        np.testing.assert_allclose(scalars["ddim"], _ddim(weighting, "refined"), rtol=1e-4)
    assert _ddim("posterior_mean", "refined") < 0.01 * _ddim("noise", "refined")


def test_the_ablation_diffuses_the_ground_truth():
    config = ground_truth_diffusion.Config(**NOTHING | {"ddim": 1.0})
    value, scalars, gradients = _loss(config, build=ground_truth_diffusion.build)
    np.testing.assert_allclose(value, _ddim("noise", "ground_truth"), rtol=1e-5)
    assert abs(value / _ddim("noise", "refined") - 1) > 1e-2
    # This loss depends on the encoded ground truth but not on the decoder.
    assert gradients["codec"] != 0 and gradients["decoder"] == 0
    _, refined, _ = _loss(Config(**NOTHING | {"ddim": 1.0}))
    same = scalars.keys() - {"ddim"}
    assert scalars.keys() == refined.keys()
    for name in same:
        np.testing.assert_allclose(scalars[name], refined[name], rtol=1e-6, err_msg=name)


def test_the_pure_ablation_trains_only_on_the_encoded_ground_truth():
    batch = _batch()
    build = ground_truth_diffusion.build

    def config(**weights):
        return ground_truth_diffusion.Config(**NOTHING | weights, decoded="ground_truth")

    both, scalars, gradients = _loss(config(l1=1.0, ddim=1.0), build=build)
    target, valid_mask = pixel.ground_truth(batch)
    depth = jnp.exp(PARAMS["decoder"] * jnp.tanh(PARAMS["codec"] * target))
    reconstruction = losses.l1(depth, target, valid_mask, max_depth=88.0).mean()
    np.testing.assert_allclose(scalars["l1"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(scalars["ddim"], _ddim("noise", "ground_truth"), rtol=1e-5)
    np.testing.assert_allclose(both, scalars["l1"] + scalars["ddim"], rtol=1e-6)
    # The denoiser and the image encoder learn from the DDIM term alone, whatever the depth loss.
    _, _, denoising = _loss(config(l1=1e-9, ddim=1.0), build=build)
    for part in ("encoder", "denoiser"):
        np.testing.assert_allclose(gradients[part], denoising[part], rtol=1e-6)
    assert all(gradients[part] != 0 for part in PARAMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"l1": 1.0, "ddim": 1.0, "latent": 1.0}, "latent is 1.0"),
        ({"l1": 1.0, "ddim": 1.0, "gradient_steps": 2}, "gradient_steps 2"),
        ({"l1": 1.0, "ddim": 1.0, "step_counts": (4,)}, r"step_counts \(4,\)"),
        ({"l1": 1.0}, "only ddim trains the denoiser"),
        ({"ddim": 1.0}, "l1, l2 and silog"),
    ],
)
def test_the_pure_ablation_refuses_terms_that_it_lacks(changes, message):
    with pytest.raises(ValueError, match=message):
        ground_truth_diffusion.Config(**NOTHING | changes, decoded="ground_truth")
    ground_truth_diffusion.Config(**NOTHING | changes)


def test_gradients_flow_through_the_configured_number_of_steps():
    batch = _batch()
    noise = self_diffusion.draw(TOY, batch["image"].shape, KEY).noise
    values, encoder = {}, {}
    for steps in (1, 2, 4, None):
        config = Config(**NOTHING | {"l1": 1.0}, gradient_steps=steps)
        values[steps], _, gradients = _loss(config)
        encoder[steps] = float(gradients["encoder"])

    def literal(encoder):
        condition = encoder * batch["image"][..., :1]

        def denoise(latent, timestep):
            return jnp.tanh(PARAMS["denoiser"] * condition - 0.2 * latent)

        latent = ddim_sample(SCHEDULE, denoise, noise, 4, gradient_steps=2)
        depth = jnp.exp(PARAMS["decoder"] * latent)
        return losses.l1(depth, *pixel.ground_truth(batch), max_depth=88.0).mean()

    np.testing.assert_allclose(encoder[2], jax.grad(literal)(PARAMS["encoder"]), rtol=1e-4)
    np.testing.assert_allclose(list(values.values()), values[None], rtol=1e-5)
    np.testing.assert_allclose(encoder[4], encoder[None], rtol=1e-5)
    assert len({round(value, 6) for value in encoder.values()}) == 3


@functools.cache
def _regression():
    config = regression.Config(encoder=resnet.Config(), codec=CodecConfig(factor=1))
    return regression.build(config)


class Line(nn.Module):
    """A network that maps an image to depth with one number; counts its calls in training."""

    drop_path_rate: float = 0.0
    config = regression.Config(encoder=resnet.Config())

    @nn.compact
    def __call__(self, image, train=False):
        slope = self.param("slope", nn.initializers.constant(5.0), ())
        image = DropPath(self.drop_path_rate)(image, train)
        calls = self.variable("batch_stats", "calls", jnp.zeros, ())
        if train:
            calls.value += 1
        return jnp.exp(slope * image[..., :1])


def test_the_pixel_objective_scores_the_networks_depth():
    config = pixel.Config(l1=1.0, l2=0.5, silog=2.0, auxiliary_fraction=0.5)
    batch = _batch()
    loss = jax.value_and_grad(pixel.build(config, Line(), STEPS), has_aux=True)
    params, stats = {"slope": jnp.float32(0.8)}, {"calls": jnp.float32(3)}
    (value, aux), gradients = loss(params, stats, batch, KEY, jnp.int32(0))
    depth = jnp.exp(0.8 * batch["image"][..., :1])
    terms = pixel.pixel_terms(config, depth, *pixel.ground_truth(batch))
    np.testing.assert_allclose(
        value, terms["l1"] + 0.5 * terms["l2"] + 2 * terms["silog"], rtol=1e-5
    )
    assert gradients["slope"] != 0 and aux.batch_stats["calls"] == 4
    (late, _), _ = loss(params, stats, batch, KEY, jnp.int32(9))
    np.testing.assert_allclose(late, 2 * terms["silog"], rtol=1e-5)
    assert aux.scalars.keys() >= {"l1", "l2", "silog", "depth_mean", "valid_fraction"}


@pytest.mark.parametrize("name", ["self_diffusion", "pixel"])
def test_dropped_paths_change_the_loss_with_the_key(name):
    draws = self_diffusion.draw(TOY, _batch()["image"].shape, KEY)

    def loss(rate, seed):
        key = jax.random.key(seed)
        if name == "self_diffusion":  # everything else that is random stays the same
            fixed = (Config(), Toy(MODEL, rate), PARAMS, {}, _batch(), draws._replace(key=key))
            return float(self_diffusion.terms_from_draws(*fixed)[0]["l1"])
        objective = pixel.build(pixel.Config(), Line(rate), STEPS)
        params, stats = {"slope": jnp.float32(0.8)}, {"calls": jnp.float32(0)}
        return float(objective(params, stats, _batch(), key, jnp.int32(0))[0])

    assert len({loss(0.0, seed) for seed in range(4)}) == 1
    assert len({loss(0.5, seed) for seed in range(8)}) > 1
    assert loss(0.5, 0) == loss(0.5, 0)


def test_half_precision_gives_nearly_the_same_loss():
    config = regression.Config(
        encoder=resnet.Config(depths=(1, 1), widths=(4, 8)),
        neck=NeckConfig(8),
        codec=CodecConfig(latent_channels=4, initial_depth=8.0),
        hidden_features=8,
    )
    shapes = jax.eval_shape(regression.build(config).init_variables, jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.3, 0.6, leaf.shape) ** 2, jnp.float32), shapes
    )
    losses_of = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        loss = jax.jit(pixel.build(pixel.Config(l2=0.0), regression.build(config, dtype), STEPS))
        value, aux = loss(
            variables["params"], variables["batch_stats"], _batch(), KEY, jnp.int32(0)
        )
        assert {leaf.dtype.name for leaf in jax.tree.leaves((value, aux))} == {"float32"}
        losses_of[dtype] = float(value)
    half, single = losses_of[jnp.bfloat16], losses_of[jnp.float32]
    assert half != single and abs(half / single - 1) < 0.02


def test_an_objective_for_another_kind_of_network_is_refused():
    with pytest.raises(ValueError, match="'regression' does not: use 'pixel'"):
        self_diffusion.build(Config(), _regression(), STEPS)
    with pytest.raises(ValueError, match="'diffusion_depth' starts from noise"):
        pixel.build(pixel.Config(), TOY, STEPS)
    relative = depth_anything.build(depth_anything.VARIANTS["v2_small"])
    with pytest.raises(ConfigError, match="'depth_anything' predicts relative disparity"):
        pixel.build(pixel.Config(), relative, STEPS)


def test_relative_labels_are_not_depth():
    """Only 'ssi' can learn from them."""
    batch = _batch()
    batch["relative_disparity"] = batch["depth"]
    with pytest.raises(ConfigError, match="the labels of the training data are relative"):
        pixel.ground_truth(batch)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auxiliary_fraction": 0.0}, r"auxiliary_fraction is 0\.0"),
        ({"auxiliary_fraction": 1.5}, r"auxiliary_fraction is 1\.5"),
        ({"auxiliary_fraction": 0.5, "ddim": 0.0}, "only l1"),
        ({"gradient_steps": 0}, "gradient_steps is 0"),
    ],
)
def test_impossible_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_more_gradient_steps_than_the_sampler_has_are_refused():
    with pytest.raises(ValueError, match=r"gradient_steps is 5, .* 4 steps"):
        self_diffusion.build(Config(gradient_steps=5), TOY, STEPS)
