from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def mitsuba() -> Iterator[None]:
    """The renderer's parts need Mitsuba set up, which `render` and `first_hits` do."""
    pytest.importorskip("mitsuba", reason="rendering needs the optional extra `render`")
    from diffdepth_jax.scenes.render import parts

    with parts.scalar_on_one_thread():
        yield
