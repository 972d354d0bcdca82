"""The compiled training step."""

import jax
import jax.numpy as jnp
import tiny_parts

from diffdepth_jax.training import experiment, sharding
from diffdepth_jax.training import step as step_lib

CROP = (32, 64)


def test_the_order_of_operations_on_the_cpu_saves_memory(tiny, monkeypatch):
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    step = step_lib.build(
        experiment.from_mapping(tiny_parts.SELF_DIFFUSION | {"batch_size": 1}), mesh
    )
    batch = {
        "image": jax.ShapeDtypeStruct((1, *CROP, 3), jnp.float32),
        "depth": jax.ShapeDtypeStruct((1, *CROP, 1), jnp.float32),
        "valid_mask": jax.ShapeDtypeStruct((1, *CROP, 1), jnp.bool_),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))

    def size():
        compiled = step.compiled().lower(step.abstract_state, batch, key).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ordered = size()
    monkeypatch.setattr(step_lib, "compiler_options", lambda platform: None)
    default = size()
    assert ordered < 0.95 * default, (ordered, default)
