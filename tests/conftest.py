"""Test-wide settings: several simulated devices, no silent broadcasting, checked array shapes."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from jaxtyping import install_import_hook

# Annotated array arguments and results are checked while the tests run, wherever arrays are the
# subject. (Not where users' mistakes are: there the package's own errors are under test.)
install_import_hook(
    [
        "diffdepth_jax.ops",
        "diffdepth_jax.models",
        "diffdepth_jax.training",
        "diffdepth_jax.evaluation.metrics",
        "diffdepth_jax.evaluation.alignment",
        "diffdepth_jax.data.geometry",
        "diffdepth_jax.data.transforms",
    ],
    "beartype.beartype",
)

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded arrays and real frames beside a developer's checkout."""
    path = PROJECT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the folder ../shared with recorded arrays and real frames is not here")
    return path
