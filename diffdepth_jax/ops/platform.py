"""Which platform a function is traced for.

Some operations have one form for the CPU and another for accelerators, with equal results. They ask
here which one to trace: the one for JAX's default backend, unless a function is being lowered for
another platform.
"""

import contextlib
from collections.abc import Iterator

import jax

# Names used by `jax.export`.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# Part of jit's cache key, so that traces are not reused across platforms.
_tracing_for = jax.make_user_context(None)


def current() -> str:
    """The platform to choose a form for; "gpu" if the default backend is one."""
    return _tracing_for.value or jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Traces functions inside the context for `platform`, regardless of the machine.

    Raises:
        ValueError: for anything not in `PLATFORMS`.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform is {platform!r}; it must be one of {', '.join(PLATFORMS)}")
    with _tracing_for(platform):
        yield
