import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.training import sharding


def test_the_mesh_is_named_and_its_arrays_lie_where_they_should():
    mesh = sharding.make_mesh()
    assert mesh.axis_names == ("data",) and mesh.size == jax.device_count() == 2
    batch = sharding.put_batch({"image": np.arange(8.0).reshape(4, 2)}, mesh)["image"]
    assert batch.shape == (4, 2) and batch.sharding == sharding.over_batch(mesh)
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2, 2)] * 2
    whole = jax.device_put(np.ones(3), sharding.replicated(mesh))
    assert [shard.data.shape for shard in whole.addressable_shards] == [(3,)] * 2


def test_a_batch_that_does_not_divide_is_refused():
    mesh = sharding.make_mesh()
    sharding.check_batch_size(4, mesh)
    with pytest.raises(ValueError, match="3 cannot be divided over 2 devices"):
        sharding.check_batch_size(3, mesh)


def test_batch_norm_sees_the_whole_batch_on_any_number_of_devices():
    """A scan is inside as well: it must accept arrays of this mesh as they come."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            hidden = nn.BatchNorm(use_running_average=False)(nn.Dense(3)(inputs))
            hidden, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h + 0.1), None), hidden, length=3)
            return hidden

    model = Model()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    # Each half of the batch has a mean of its own: statistics per device would show.
    inputs = np.concatenate([np.full((2, 2), 5.0), np.random.default_rng(0).normal(size=(2, 2))])

    def loss(variables, batch):
        output, updated = model.apply(variables, batch["inputs"], mutable=["batch_stats"])
        return (output**2).mean(), updated

    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = sharding.make_mesh(devices)
        replicated = sharding.replicated(mesh)
        step = jax.jit(
            loss,
            in_shardings=(replicated, sharding.over_batch(mesh)),
            out_shardings=(replicated, replicated),
        )
        batch = sharding.put_batch({"inputs": inputs.astype(np.float32)}, mesh)
        results.append(step(jax.device_put(variables, replicated), batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)
