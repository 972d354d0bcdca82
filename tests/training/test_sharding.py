import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.training import sharding
from diffdepth_jax.training.sharding import MeshConfig


def test_the_mesh_is_named_and_its_arrays_are_on_the_right_devices():
    mesh = sharding.make_mesh(MeshConfig())
    assert mesh.axis_names == ("data", "fsdp") and mesh.devices.shape == (2, 1)
    batch = jax.device_put(np.arange(8.0).reshape(4, 2), sharding.over_batch(mesh))
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2, 2)] * 2
    whole = jax.device_put(np.ones(3), sharding.replicated(mesh))
    assert [shard.data.shape for shard in whole.addressable_shards] == [(3,)] * 2


def test_a_state_is_sharded_along_its_longest_axes():
    state = {"kernel": jnp.ones((3, 64, 128)), "odd": jnp.ones((3, 9999)), "bias": jnp.ones(128)}
    mesh = sharding.make_mesh(MeshConfig(fsdp=2))
    placed = jax.device_put(state, sharding.of_state(state, mesh))
    shapes = {name: array.addressable_shards[0].data.shape for name, array in placed.items()}
    assert shapes == {"kernel": (3, 64, 64), "odd": (3, 9999), "bias": (128,)}
    whole = sharding.on_one_device(placed, mesh)
    assert all(array.devices() == {jax.devices()[0]} for array in whole.values())
    assert {name: array.shape for name, array in whole.items()} == {
        name: array.shape for name, array in state.items()
    }
    copies = sharding.of_state(state, sharding.make_mesh(MeshConfig()))
    assert all(each.is_fully_replicated for each in copies.values())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fsdp": 3}, "mesh.fsdp 3 does not match the 2 devices"),
        ({"data": 4}, "mesh.data 4 x mesh.fsdp 1 does not match the 2"),
        ({"fsdp": 0}, "fsdp 0"),
        ({"data": 0}, "data is 0"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(MeshConfig(**fields))


def test_processes_with_unequal_devices_are_refused(monkeypatch):
    devices = [types.SimpleNamespace(process_index=index) for index in (0, 1, 1)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(ValueError, match=r"have \[1, 2\] devices"):
        sharding.make_mesh(MeshConfig())


def test_a_single_process_needs_no_agreement():
    agreement = sharding.Agreement(sharding.make_mesh(MeshConfig()))
    assert [agreement.greatest(number) for number in (0, 15, 0)] == [0, 15, 0]
    batch = {"image": np.zeros(2)}
    assert sharding.shared_batch(batch, sharding.make_mesh(MeshConfig())) is batch


def test_a_batch_that_does_not_divide_is_refused():
    mesh = sharding.make_mesh(MeshConfig())
    sharding.check_batch_size(4, mesh)
    with pytest.raises(ValueError, match="3 cannot be divided among 2 devices"):
        sharding.check_batch_size(3, mesh)
    with pytest.raises(ValueError, match=r"4 cannot .* 4 parts .* multiple of 8"):
        sharding.check_batch_size(4, mesh, accumulate=4)


def test_batch_norm_sees_the_whole_batch_on_any_number_of_devices():
    """Inside a scan too, which must accept arrays of this mesh as they are."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            hidden = nn.BatchNorm(use_running_average=False)(nn.Dense(3)(inputs))
            hidden, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h + 0.1), None), hidden, length=3)
            return hidden

    model = Model()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    # The halves of the batch have different means, so statistics per device would show.
    inputs = np.concatenate([np.full((2, 2), 5.0), np.random.default_rng(0).normal(size=(2, 2))])

    def loss(variables, batch):
        output, updated = model.apply(variables, batch["inputs"], mutable=["batch_stats"])
        return (output**2).mean(), updated

    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = sharding.make_mesh(MeshConfig(), devices)
        replicated = sharding.replicated(mesh)
        step = jax.jit(
            loss,
            in_shardings=(replicated, sharding.over_batch(mesh)),
            out_shardings=(replicated, replicated),
        )
        batch = {"inputs": inputs.astype(np.float32)}
        results.append(step(jax.device_put(variables, replicated), batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)
