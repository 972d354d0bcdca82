"""Distillation objectives: each option does what it says, and some objective fits every network.

Options are tested on a network with a single multiplication, against `ops.losses`, which has its
own tests.
"""

import functools
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import registry
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.layers import DropPath
from diffdepth_jax.models.networks import depth_anything, monodepth2, network, regression
from diffdepth_jax.models.networks.network import PredictsScales
from diffdepth_jax.ops import losses
from diffdepth_jax.training.objectives import md4all, metric, pixel, ssi
from diffdepth_jax.training.objectives.metric import Config as MetricConfig
from diffdepth_jax.training.objectives.ssi import Config, SsiTerms
from tests.models.networks.test_contract import size_of_inputs, small

STEPS = 10  # length of the run
KEY = jax.random.key(1)
METRIC = regression.Config(encoder=resnet.Config())
RELATIVE = depth_anything.VARIANTS["v2_small"]


class Line(nn.Module):
    """Maps an image to a positive number per pixel with one parameter; counts its calls."""

    config: Any
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, image, train=False):
        slope = self.param("slope", nn.initializers.constant(0.8), ())
        image = DropPath(self.drop_path_rate)(image, train)
        calls = self.variable("batch_stats", "calls", jnp.zeros, ())
        if train:
            calls.value += 1
        return 0.05 + jnp.exp(slope * image[..., :1])


class Pyramid(nn.Module, PredictsScales):
    """Like `Line`, but predicts inverse depth at four scales."""

    num_scales = 4
    config: Any

    @nn.compact
    def inverse_depths(self, image, train=False):
        slope = self.param("slope", nn.initializers.constant(0.8), ())
        steps = (slice(None, None, 2**scale) for scale in range(self.num_scales))
        return tuple(jnp.exp(slope * image[:, step, step, :1]) for step in steps)


def _batch(relative=False, size=(8, 16)):
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 30, (3, *size, 1))
    valid_mask = rng.uniform(size=depth.shape) < 0.7
    batch = {"image": rng.standard_normal((3, *size, 3)), "depth": depth * valid_mask}
    if relative:  # zeros are labels too
        batch["relative_disparity"] = np.maximum(rng.uniform(-1, 9, depth.shape), 0) * valid_mask
    batch = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), batch)
    return batch | {"valid_mask": jnp.asarray(valid_mask)}


PARAMS = {"slope": jnp.float32(0.8)}


def _loss(file, config, model=None, batch=None, key=KEY, step=0):
    """The loss, its logged scalars, and the gradient."""
    model = Line(METRIC) if model is None else model
    loss = jax.value_and_grad(file.build(config, model, STEPS), has_aux=True)
    stats = {"calls": jnp.float32(3)} if isinstance(model, Line) else {}
    batch = _batch() if batch is None else batch
    (value, aux), gradient = loss(PARAMS, stats, batch, key, jnp.int32(step))
    assert aux.batch_stats == ({"calls": 4} if isinstance(model, Line) else {})
    return float(value), aux.scalars, float(gradient["slope"])


def _prediction(batch):
    return 0.05 + jnp.exp(0.8 * batch["image"][..., :1])


def _want(prediction, target, valid_mask, form="median", trim=0.2, gradient=0.0, scales=4):
    residual = losses.aligned_residual(prediction, target, valid_mask, form=form).residual
    value = losses.ssi(residual, valid_mask, form=form, trim=trim)
    value += gradient * losses.multi_scale_gradient(residual, valid_mask, num_scales=scales)
    return float(value.mean())


# ---- ssi -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "literal"),
    [
        ({}, {}),
        ({"form": "trimmed"}, {"form": "trimmed"}),
        ({"form": "trimmed", "trim": 0.5}, {"form": "trimmed", "trim": 0.5}),
        ({"form": "least_squares"}, {"form": "least_squares"}),
        ({"gradient": 0.5}, {"gradient": 0.5}),
        ({"gradient": 0.5, "gradient_scales": 2}, {"gradient": 0.5, "scales": 2}),
    ],
)
def test_the_loss_follows_the_options(options, literal):
    batch = _batch(relative=True)
    value, scalars, gradient = _loss(ssi, Config(**options), Line(RELATIVE), batch)
    masked = (_prediction(batch), batch["relative_disparity"], batch["valid_mask"])
    np.testing.assert_allclose(value, _want(*masked, **literal), rtol=1e-5)
    others = [{}, {"form": "trimmed"}, {"gradient": 0.5}]
    assert all(abs(value / _want(*masked, **each) - 1) > 1e-3 for each in others if each != literal)
    assert gradient != 0
    assert ("ssi_gradient" in scalars) == ("gradient" in options)
    assert scalars["flat_labels"] == scalars["flat_predictions"] == 0
    assert {"ssi", "disparity_mean", "disparity_max", "valid_fraction"} <= scalars.keys()


def _inverse(depth, at_least=1e-3):
    return 1 / jnp.maximum(depth, at_least)


@pytest.mark.parametrize(
    ("network_config", "relative_labels", "space", "compares"),
    [
        (RELATIVE, True, "auto", ("unchanged", "disparity")),
        (RELATIVE, True, "inverse_depth", ("unchanged", "disparity")),
        (RELATIVE, False, "auto", ("unchanged", "1 / depth")),
        (RELATIVE, False, "inverse_depth", ("unchanged", "1 / depth")),
        (METRIC, False, "auto", ("unchanged", "depth")),
        (METRIC, False, "depth", ("unchanged", "depth")),
        (METRIC, False, "inverse_depth", ("inverse", "1 / depth")),
        (METRIC, True, "auto", ("inverse", "disparity")),
        (METRIC, True, "inverse_depth", ("inverse", "disparity")),
    ],
)
def test_prediction_and_label_are_compared_in_the_same_space(
    network_config, relative_labels, space, compares
):
    batch = _batch(relative_labels)
    config = Config(form="least_squares", space=space)
    value, *_ = _loss(ssi, config, Line(network_config), batch)
    prediction = _prediction(batch)
    prediction = {"unchanged": prediction, "inverse": _inverse(prediction)}[compares[0]]
    target = {
        "depth": batch["depth"],
        "1 / depth": _inverse(batch["depth"]),
        "disparity": batch.get("relative_disparity"),
    }[compares[1]]
    want = _want(prediction, target, batch["valid_mask"], form="least_squares")
    np.testing.assert_allclose(value, want, rtol=1e-5)


def test_depths_are_clipped_from_below_before_inversion():
    batch = _batch()
    config = Config(space="inverse_depth", min_depth=4.0)
    value, *_ = _loss(ssi, config, batch=batch)
    want = _want(
        _inverse(_prediction(batch), 4.0), _inverse(batch["depth"], 4.0), batch["valid_mask"]
    )
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert abs(value / _loss(ssi, replace(config, min_depth=1e-3), batch=batch)[0] - 1) > 1e-2


@pytest.mark.parametrize("form", ["median", "trimmed", "least_squares"])
def test_useless_labels_contribute_nothing_and_are_counted(form):
    """Of three labels, one is constant, as from a broken teacher, and one has no valid pixel."""
    config, model = Config(form=form, gradient=0.5), Line(RELATIVE)
    batch = _batch(relative=True)
    residual = losses.aligned_residual(
        _prediction(batch), batch["relative_disparity"], batch["valid_mask"], form=form
    ).residual
    each = losses.ssi(residual, batch["valid_mask"], form=form)
    each += 0.5 * losses.multi_scale_gradient(residual, batch["valid_mask"])
    batch["relative_disparity"] = batch["relative_disparity"].at[1].set(0.3)
    batch["valid_mask"] = batch["valid_mask"].at[2].set(False)
    value, scalars, gradient = _loss(ssi, config, model, batch)
    np.testing.assert_allclose(value, each[0] / 3, rtol=1e-5)
    np.testing.assert_allclose(scalars["flat_labels"], 2 / 3, rtol=1e-6)
    assert np.isfinite(gradient) and gradient != 0
    batch["valid_mask"] = batch["valid_mask"].at[0].set(False)
    value, scalars, gradient = _loss(ssi, config, model, batch)
    assert value == gradient == 0 and scalars["flat_labels"] == 1


def test_a_dead_prediction_is_counted():
    batch = _batch(relative=True)
    batch["image"] = batch["image"].at[0].set(0.0)
    value, scalars, gradient = _loss(ssi, Config(), Line(RELATIVE), batch)
    np.testing.assert_allclose(scalars["flat_predictions"], 1 / 3, rtol=1e-6)
    assert np.isfinite([value, gradient]).all() and gradient != 0


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
@pytest.mark.parametrize("relative", [True, False])
def test_unlabelled_pixels_may_hold_anything(garbage, relative):
    batch = _batch(relative)
    dirty = dict(batch)
    for name in ("depth", "relative_disparity") if relative else ("depth",):
        dirty[name] = jnp.where(batch["valid_mask"], batch[name], garbage)
    config = Config(gradient=0.5, space="inverse_depth")
    got, want = (_loss(ssi, config, batch=each) for each in (dirty, batch))
    assert got[::2] == want[::2]


# ---- metric --------------------------------------------------------------------------------------

NOTHING = {"l1": 0.0, "l2": 0.0, "silog": 0.0, "log_l1": 0.0, "ssi": 0.0}


@pytest.mark.parametrize("term", NOTHING)
def test_each_weight_scales_its_term(term):
    config = MetricConfig(**NOTHING | {term: 3.0}, max_depth=20.0)
    value, scalars, gradient = _loss(metric, config)
    batch = _batch()
    masked = (_prediction(batch), batch["depth"], batch["valid_mask"])
    want = {
        "l1": losses.l1(*masked, max_depth=20.0),
        "l2": losses.l2(*masked, max_depth=20.0),
        "silog": losses.silog(*masked),
        "log_l1": losses.log_l1(*masked),
        "ssi": jnp.asarray(_want(*masked)),
    }[term].mean()
    np.testing.assert_allclose(value, 3.0 * want, rtol=1e-5)
    np.testing.assert_allclose(scalars[term], want, rtol=1e-5)
    assert gradient != 0
    assert ("flat_labels" in scalars) == (term == "ssi")


def test_the_ssi_term_has_its_own_options():
    options = {"form": "trimmed", "gradient": 0.5, "space": "inverse_depth"}
    config = MetricConfig(**NOTHING | {"ssi": 1.0}, ssi_options=SsiTerms(**options))
    np.testing.assert_allclose(
        _loss(metric, config)[0], _loss(ssi, Config(**options))[0], rtol=1e-6
    )


def test_metric_losses_can_be_auxiliary():
    config = MetricConfig(l1=1.0, silog=2.0, auxiliary_fraction=0.5)
    (early, scalars, _), (late, *_) = (_loss(metric, config, step=step) for step in (4, 5))
    np.testing.assert_allclose(early - late, scalars["l1"], rtol=1e-5)


# ---- md4all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [1, 3, 4])
def test_md4all_is_the_mean_relative_error_over_the_scales(scales):
    batch = _batch()
    batch["valid_mask"] = batch["valid_mask"].at[:, :, :8].set(False)  # some blocks are empty
    value, aux, gradient = _loss(md4all, md4all.Config(scales=scales), Pyramid(METRIC), batch)
    depth, mask, image = (
        np.float64(batch[name])[..., :1] for name in ("depth", "valid_mask", "image")
    )
    wanted = []
    for scale in range(scales):
        step, rows, columns = 2**scale, 8 // 2**scale, 16 // 2**scale
        student = np.exp(0.8 * image[:, ::step, ::step])
        errors = [[] for _ in range(3)]
        for index in np.ndindex(3, rows, columns):
            one, block = index[0], (slice(index[1] * step, (index[1] + 1) * step),)
            block = (one, *block, slice(index[2] * step, (index[2] + 1) * step))
            if mask[block].any():
                teacher = (1 / depth[block][mask[block] > 0]).mean()
                errors[one].append(abs(student[index][0] - teacher) / student[index][0])
        wanted.append(np.mean([np.mean(each) for each in errors]))
    np.testing.assert_allclose(value, np.mean(wanted), rtol=1e-5)
    np.testing.assert_allclose([aux[f"md4all_scale{k}"] for k in range(scales)], wanted, rtol=1e-5)
    assert gradient != 0


def test_md4all_uses_the_scales_of_a_teacher():
    batch = _batch()
    rng = np.random.default_rng(1)
    batch["inverse_depths"] = tuple(
        jnp.asarray(rng.uniform(0.1, 1, (3, 8 // 2**k, 16 // 2**k, 1)), jnp.float32)
        for k in range(4)
    )
    _, aux, _ = _loss(md4all, md4all.Config(), Pyramid(METRIC), batch)
    for scale, teacher in enumerate(batch["inverse_depths"]):
        step = 2**scale
        student = np.exp(0.8 * np.float64(batch["image"])[:, ::step, ::step, :1])
        blocks = np.asarray(batch["valid_mask"]).reshape(3, 8 // step, step, 16 // step, step)
        known = blocks.any((2, 4))[..., None]
        errors = zip(np.abs(student - teacher) / student, known, strict=True)
        want = np.mean([error[known].mean() for error, known in errors])
        np.testing.assert_allclose(aux[f"md4all_scale{scale}"], want, rtol=1e-5)


def test_at_one_scale_md4all_is_the_relative_error_of_depth():
    batch = _batch()
    value, *_ = _loss(md4all, md4all.Config(scales=1))
    prediction, mask = _prediction(batch), batch["valid_mask"]
    relative = jnp.where(mask, jnp.abs(prediction / jnp.where(mask, batch["depth"], 1) - 1), 0)
    np.testing.assert_allclose(
        value, (relative.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean(), rtol=1e-5
    )


def test_an_image_without_labels_is_harmless_to_md4all():
    batch = _batch()
    batch["valid_mask"] = batch["valid_mask"].at[0].set(False)
    value, _, gradient = _loss(md4all, md4all.Config(), Pyramid(METRIC), batch)
    assert np.isfinite([value, gradient]).all() and gradient != 0


# ---- combinations that do not fit ----------------------------------------------------------------


def _module(name, **fields):
    config = replace(registry.module("network", name).VARIANTS["res18"], **fields)
    return registry.module("network", name).build(config)


@pytest.mark.parametrize(
    ("file", "config", "model", "message"),
    [
        (ssi, Config(), lambda: _module("diffusion_depth"), "starts from noise: use 'self_diff"),
        (metric, MetricConfig(), lambda: _module("diffusion_depth"), "starts from noise: use 'se"),
        (md4all, md4all.Config(), lambda: _module("diffusion_depth"), "starts from noise: use 'se"),
        (
            metric,
            MetricConfig(),
            lambda: Line(RELATIVE),
            "predicts relative disparity .* use 'ssi'",
        ),
        (md4all, md4all.Config(), lambda: Line(RELATIVE), "predicts relative disparity .* use 'ss"),
        (ssi, Config(space="depth"), lambda: Line(RELATIVE), "space is 'depth', but 'depth_anyth"),
        (md4all, md4all.Config(), lambda: Line(METRIC), "scales is 4, .* at 1: set scales=1"),
        (md4all, md4all.Config(scales=5), lambda: _module("monodepth2"), "scales is 5, .* at 4"),
    ],
)
def test_networks_that_do_not_suit_the_objective_are_refused(file, config, model, message):
    with pytest.raises(ConfigError, match=message):
        file.build(config, model(), STEPS)


@pytest.mark.parametrize(
    ("file", "config", "message"),
    [
        (pixel, pixel.Config(), "relative disparity, .* use|train with the objective 'ssi'"),
        (metric, MetricConfig(), "train with the objective 'ssi'"),
        (md4all, md4all.Config(scales=1), "train with the objective 'ssi'"),
        (ssi, Config(space="depth"), "space is 'depth', but the labels .* are relative"),
    ],
)
def test_relative_labels_are_refused_where_depth_is_needed(file, config, message):
    with pytest.raises(ConfigError, match=message):
        _loss(file, config, batch=_batch(relative=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trim": 1.0}, r"trim is 1\.0"),
        ({"trim": -0.1}, r"trim is -0\.1"),
        ({"gradient": -1.0}, r"gradient is -1\.0"),
        ({"gradient_scales": 0}, "gradient_scales is 0"),
        ({"min_depth": 0.0}, r"min_depth is 0\.0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_impossible_options_of_the_other_objectives_are_refused():
    with pytest.raises(ValueError, match="scales is 0"):
        md4all.Config(scales=0)
    with pytest.raises(ValueError, match="or all zero"):
        MetricConfig(**NOTHING)


# ---- in training ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "config"), [(ssi, Config()), (metric, MetricConfig())])
def test_dropped_paths_change_the_loss_with_the_key(file, config):
    def loss(rate, seed):
        objective = file.build(config, Line(METRIC, rate), STEPS)
        stats = {"calls": jnp.float32(0)}
        return float(objective(PARAMS, stats, _batch(), jax.random.key(seed), jnp.int32(0))[0])

    assert len({loss(0.0, seed) for seed in range(3)}) == 1
    assert len({loss(0.5, seed) for seed in range(6)}) > 1
    assert loss(0.5, 0) == loss(0.5, 0)


def _step(file, config, model, variables):
    height, width = size_of_inputs(model)
    batch = _batch(model.config.output == "relative_disparity", (height, width))
    loss = jax.value_and_grad(file.build(config, model, STEPS), has_aux=True)
    return functools.partial(loss, variables["params"], variables.get("batch_stats", {})), batch


@pytest.mark.parametrize("name", ["regression", "dpt"])
def test_networks_train_with_ssi(name):
    """Metric and relative networks, with batch statistics and without."""
    _, model, variables = small(name)
    step, batch = _step(ssi, Config(gradient=0.5), model, variables)
    arguments = (batch, KEY, jnp.int32(0))
    (loss, aux), gradients = jax.jit(step)(*arguments)
    assert np.isfinite(loss) and loss > 0
    assert aux.scalars["flat_labels"] == aux.scalars["flat_predictions"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    for part, tree in gradients.items():
        used = [bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(tree)]
        assert np.mean(used) > 0.8, part
    moved = jax.tree.map(
        lambda new, old: bool((new != old).any()), aux.batch_stats, variables.get("batch_stats", {})
    )
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", [n for n in registry.names("network") if n != "diffusion_depth"])
def test_every_network_has_objectives(name):
    """From shapes alone."""
    _, model, variables = small(name)
    if model.config.output == "relative_disparity":
        objectives = [(ssi, Config(form="trimmed"))]
    else:
        scales = 4 if isinstance(model, PredictsScales) else 1
        objectives = [(metric, MetricConfig(ssi=1.0)), (md4all, md4all.Config(scales=scales))]
    for file, config in objectives:
        step, batch = _step(file, config, model, variables)
        (loss, aux), gradients = jax.eval_shape(step, batch, KEY, jnp.int32(0))
        assert loss.shape == () and loss.dtype == jnp.float32
        assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, variables["params"])
        assert {leaf.shape for leaf in jax.tree.leaves(aux.scalars)} == {()}


def test_monodepth2_returns_as_many_scales_as_it_claims():
    _, model, variables = small("monodepth2")
    assert isinstance(model, network.PredictsScales)
    image = jnp.zeros((1, *size_of_inputs(model), 3))
    maps = jax.eval_shape(functools.partial(model.apply, method="inverse_depths"), variables, image)
    assert len(maps) == monodepth2.Monodepth2.num_scales == 4
    assert [each.shape[1:3] for each in maps] == [
        tuple(side // 2**scale for side in image.shape[1:3]) for scale in range(4)
    ]
