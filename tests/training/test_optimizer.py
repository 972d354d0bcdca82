import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.training import optimizer
from diffdepth_jax.training.optimizer import OptimizerConfig


def rates(config, num_steps):
    schedule = optimizer.learning_rate_schedule(config, num_steps)
    return np.array([schedule(step) for step in range(num_steps)])


def test_constant_after_a_linear_warmup():
    np.testing.assert_allclose(
        rates(OptimizerConfig(learning_rate=0.8, warmup_steps=4), 6),
        [0.2, 0.4, 0.6, 0.8, 0.8, 0.8],
        rtol=1e-6,
    )
    np.testing.assert_allclose(rates(OptimizerConfig(learning_rate=0.8), 3), [0.8] * 3)


def test_the_release_warms_up_for_an_epoch_and_drops_at_epochs_10_and_15():
    epoch = 3  # steps
    config = OptimizerConfig(
        learning_rate=1e-3,
        schedule="steps",
        warmup_steps=epoch,
        boundaries=(10 * epoch, 15 * epoch),
        factors=(0.2, 0.04),
    )

    def literal(step):
        if step // epoch < 1:
            return 1e-3 * (step + 1) / epoch
        return 1e-3 * (1.0 if step // epoch < 10 else 0.2 if step // epoch < 15 else 0.04)

    np.testing.assert_allclose(
        rates(config, 20 * epoch), [literal(step) for step in range(20 * epoch)], rtol=1e-6
    )


def test_cosine_falls_to_zero_at_the_end_of_the_run():
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=2)
    steps = np.arange(10)
    expected = np.where(steps < 2, (steps + 1) / 2, 0.5 * (1 + np.cos(np.pi * (steps - 2) / 8)))
    np.testing.assert_allclose(rates(config, 10), expected, atol=1e-6)


def one_update(config, gradient, params):
    transformation = optimizer.build(config, lambda step: config.learning_rate)
    updates, _ = transformation.update(gradient, transformation.init(params), params)
    return optax.apply_updates(params, updates)


def test_adam_moves_by_the_rate_and_adamw_decays_only_kernels():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    gradient = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, -3.0)}
    adam = one_update(OptimizerConfig(name="adam", learning_rate=0.1), gradient, params)
    np.testing.assert_allclose(adam["kernel"], 0.9, rtol=1e-5)
    np.testing.assert_allclose(adam["bias"], 1.1, rtol=1e-5)
    adamw = one_update(
        OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.5), gradient, params
    )
    np.testing.assert_allclose(adamw["kernel"], 0.9 - 0.1 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(adamw["bias"], 1.1, rtol=1e-5)


def test_clipping_uses_the_norm_of_all_gradients():
    # With a huge eps Adam is linear in the gradient, so the gradient's scale is visible.
    config = OptimizerConfig(name="adam", learning_rate=1.0, eps=1e6)
    params = {"one": jnp.zeros(1), "other": jnp.zeros(1)}
    gradient = {"one": jnp.full(1, 30.0), "other": jnp.full(1, 40.0)}
    free = one_update(config, gradient, params)
    clipped = one_update(
        OptimizerConfig(name="adam", learning_rate=1.0, eps=1e6, clip_norm=5.0), gradient, params
    )
    for name in params:
        np.testing.assert_allclose(clipped[name], free[name] / 10, rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_multipliers_scale_the_rate_of_the_parts_they_name(name):
    decay = 0.5 if name == "adamw" else 0.0
    params = {part: {"kernel": jnp.ones((2, 2))} for part in ("encoder", "neck")}
    gradient = {part: {"kernel": jnp.full((2, 2), 3.0)} for part in params}
    config = OptimizerConfig(
        name=name, learning_rate=0.1, weight_decay=decay, multipliers={"encoder": 0.25}
    )
    new = one_update(config, gradient, params)
    # The rate also scales weight decay.
    np.testing.assert_allclose(new["neck"]["kernel"], 0.9 - 0.1 * decay, rtol=1e-5)
    np.testing.assert_allclose(new["encoder"]["kernel"], 1 - 0.025 * (1 + decay), rtol=1e-5)


def test_unknown_parts_are_refused_listing_the_networks_parts():
    config = OptimizerConfig(multipliers={"encode": 0.0, "neck": 0.5})
    with pytest.raises(ValueError, match="names encode, but the network's parts are encoder, neck"):
        config.check_parts({"neck": 1, "encoder": 2})
    with pytest.raises(ValueError, match="freezes all parts"):
        OptimizerConfig(multipliers={"neck": 0.0}).check_parts({"neck": 1})
    config = OptimizerConfig(multipliers={"encoder": 0.0, "neck": 0.5})
    config.check_parts({"neck": 1, "encoder": 2, "codec": 3})
    assert config.frozen == ("encoder",)


def _vision_transformer():
    """Parameters named as in an encoder; the last block is one layer below the head."""
    return {name: {"kernel": jnp.ones((2, 2))} for name in ("patch_embed", "block0", "block1")}


def test_encoder_layers_nearer_to_the_image_train_more_slowly():
    encoder = _vision_transformer() | {"class_token": jnp.ones(3), "norm": {"scale": jnp.ones(3)}}
    params = {"encoder": encoder, "head": {"kernel": jnp.ones((2, 2))}}
    gradient = jax.tree.map(jnp.ones_like, params)
    config = OptimizerConfig(learning_rate=0.1, layer_decay=0.5, multipliers={"encoder": 0.8})
    moved = jax.tree.map(
        lambda new: (1 - new.ravel()[0]) / 0.1, one_update(config, gradient, params)
    )
    want = {"patch_embed": 0.1, "class_token": 0.1, "block0": 0.2, "block1": 0.4, "norm": 0.8}
    for part, rate in want.items():
        np.testing.assert_allclose(jax.tree.leaves(moved["encoder"][part]), [rate], rtol=1e-4)
    np.testing.assert_allclose(moved["head"]["kernel"], 1.0, rtol=1e-4)
    same = one_update(OptimizerConfig(learning_rate=0.1), gradient, params)
    assert len({float(leaf.ravel()[0]) for leaf in jax.tree.leaves(same)}) == 1


def test_layer_decay_reaches_an_encoder_in_a_metric_networks_core():
    params = {
        "core": {"encoder": _vision_transformer(), "head": {"kernel": 1}},
        "heads": {"kernel": 1},
    }
    factors = optimizer.learning_rate_factors(
        OptimizerConfig(layer_decay=0.5, multipliers={"core": 0.8}), params
    )
    encoder = {"patch_embed": 0.1, "block0": 0.2, "block1": 0.4}
    assert factors == {"core": {"encoder": pytest.approx(encoder), "head": 0.8}, "heads": 1.0}


def test_layer_decay_with_a_frozen_part():
    config = OptimizerConfig(layer_decay=0.5, multipliers={"head": 0.0})
    trained = {"encoder": _vision_transformer()}  # what the update sees of the params
    new = one_update(config, jax.tree.map(jnp.ones_like, trained), trained)
    np.testing.assert_allclose(new["encoder"]["block1"]["kernel"], 1 - 0.5e-3, rtol=1e-6)


def test_layer_decay_needs_an_encoder_that_is_trained():
    config = OptimizerConfig(layer_decay=0.5)
    config.check_parts({"encoder": {}, "head": {}})
    config.check_parts({"core": {"encoder": {}}, "heads": {}})
    with pytest.raises(ConfigError, match=r"layer_decay is 0\.5, but the network has no encoder"):
        config.check_parts({"head": {}})
    frozen = OptimizerConfig(layer_decay=0.5, multipliers={"encoder": 0.0})
    with pytest.raises(ConfigError, match="has its encoder frozen"):
        frozen.check_parts({"encoder": {}, "head": {}})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.1}, "layer_decay"),
        ({"multipliers": {"encoder": -1.0}}, "multipliers"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"name": "adam", "weight_decay": 0.1}, "adamw"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"schedule": "steps", "boundaries": (1, 2), "factors": (0.1,)}, "the same length"),
        ({"schedule": "steps"}, "boundaries"),
        ({"boundaries": (1,), "factors": (0.1,)}, "schedule='steps'"),
        ({"schedule": "steps", "boundaries": (5, 2), "factors": (0.1, 0.1)}, "increase"),
        (
            {"schedule": "steps", "boundaries": (5,), "factors": (0.1,), "warmup_steps": 6},
            "warm-up",
        ),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


def test_a_trial_run_shorter_than_the_warmup_only_warms_up():
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=4)
    np.testing.assert_allclose(rates(config, 2), [0.25, 0.5])
