"""Forms that depend on the platform."""

import jax
import jax.numpy as jnp
import pytest

from diffdepth_jax.ops import platform
from diffdepth_jax.ops.attention import attention


def test_a_function_is_traced_for_the_requested_platform():
    tokens = jnp.ones((1, 3, 2, 4))

    @jax.jit
    def attend(tokens):
        return attention(tokens, tokens, tokens)

    def has_loop():
        return "scan" in str(jax.make_jaxpr(attend)(tokens))

    # The CPU computes one head at a time. The same jitted function is traced for each platform.
    assert platform.current() == "cpu" and has_loop()
    with platform.tracing_for("cuda"):
        assert platform.current() == "cuda" and not has_loop()
        with platform.tracing_for("cpu"):
            assert has_loop()
    assert platform.current() == "cpu" and has_loop()


def test_an_unknown_platform_is_refused():
    with (
        pytest.raises(ValueError, match="platform is 'gpu'; it must be"),
        platform.tracing_for("gpu"),
    ):
        pass
