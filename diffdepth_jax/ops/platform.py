"""Which platform a function is traced for.

Some operations have a form for the CPU and another one for accelerators; both give the same values.
They ask here which one to trace. It is the platform of JAX's default backend, unless a function is
lowered for a platform that this machine does not have.
"""

import contextlib
from collections.abc import Iterator

import jax

# As `jax.export` calls them.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# Part of jit's cache key, so that no trace is used for another platform.
_tracing_for = jax.make_user_context(None)


def current() -> str:
    """The platform to choose a form for; "gpu" where the default backend is one."""
    return _tracing_for.value or jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Inside, functions are traced for `platform`, whatever the machine has.

    Raises:
        ValueError: for anything not in `PLATFORMS`.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform is {platform!r}; it must be one of {', '.join(PLATFORMS)}")
    with _tracing_for(platform):
        yield
