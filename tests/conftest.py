"""Test-wide settings: several simulated devices, no silent broadcasting, checked array shapes."""

import functools
import json
import os
import shutil
import signal
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Most programs run once here, on small arrays: compiling them takes far longer than running them.
# All of XLA's own passes still run; only LLVM does not optimise their result. To test that too:
# XLA_FLAGS=--xla_backend_optimization_level=3 (of repeated flags XLA obeys the last).
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=2"
)
# Many programs recur in other tests and in the scripts that tests start. Each xdist worker has its
# own folder, as JAX does not write entries atomically.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest
from jaxtyping import install_import_hook

# A shell's background job ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Array annotations are checked while the tests run, in the modules that compute with arrays. (Not
# where user input is checked: there the package's own errors are under test.)
install_import_hook(
    [
        "diffdepth_jax.ops",
        "diffdepth_jax.models",
        "diffdepth_jax.training",
        "diffdepth_jax.evaluation.metrics",
        "diffdepth_jax.evaluation.protocols.alignment",
        "diffdepth_jax.data.geometry",
        "diffdepth_jax.data.transforms",
    ],
    "beartype.beartype",
)

pytest_plugins = ["tests.layouts"]  # data sets that tests write

PROJECT = Path(__file__).resolve().parents[1]


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real frames and published lists beside a developer's checkout."""
    path = PROJECT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the folder ../shared with real frames is not here")
    return path


@dataclass(frozen=True)
class GoldenCase:
    """A recorded run of the published implementation, with the weights that it used.

    Attributes:
        arrays: inputs and results, maps as NHWC.
        samples: the values kept of large maps; see `error`.
        meta: what `golden/README.md` describes.
    """

    arrays: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    meta: dict[str, Any]

    @functools.cached_property
    def state_dict(self) -> dict[str, np.ndarray]:
        """The weights, drawn again by name: the recording does not contain them."""
        left_out = tuple(self.meta.get("constants", ()))
        return {
            name: _golden_weight(name, shape, self.meta.get("scale", {}))
            for name, shape in self.meta["shapes"].items()
            if not name.endswith(left_out)
        }

    def error(self, name: str, got: Any) -> float:
        """The relative L2 error of an NHWC map or another array, over the recorded values."""
        got = np.asarray(got, np.float64)
        if name in self.samples:
            wanted = self.samples[name]
            got = got.transpose(0, 3, 1, 2).ravel()[:: self.meta["strides"][name]]
        else:
            wanted = self.arrays[name]
            if got.shape != wanted.shape:
                got = _cut(got)
        assert got.shape == wanted.shape, name
        return float(np.linalg.norm(got - wanted) / np.linalg.norm(np.float64(wanted)))


def _cut(array: np.ndarray) -> np.ndarray:
    """What network recordings keep of a map [b, h, w, c] or of tokens [b, n, c]."""
    if array.ndim == 4:
        rows, columns = (max(1, side // 8) for side in array.shape[1:3])
        return array[:, ::rows, ::columns, :8]
    return array[:, :: max(1, array.shape[1] // 16), :16]


def _golden_weight(name: str, shape: list[int], scale: Mapping[str, float]) -> np.ndarray:
    """The weight with this name; `scale` maps endings of names to factors."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("num_batches_tracked", "relative_position_index")):
        return np.zeros(shape, np.int64)
    if name.endswith("running_mean"):
        weight = 0.1 * rng.standard_normal(shape)
    elif name.endswith("running_var"):
        weight = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        weight = rng.standard_normal(shape) * np.prod(shape[1:]) ** -0.5
        if name == "depth_head.depth_transform.conv_inv_transform.3.0.weight":
            weight *= 0.05
    elif name.endswith("bias"):
        weight = 0.1 * rng.standard_normal(shape)
    else:
        weight = rng.uniform(0.5, 1.5, shape)
    for ending, factor in scale.items():
        if name.endswith(ending):
            weight = factor * weight
    return weight.astype(np.float32)


@pytest.fixture
def golden() -> Callable[[str], GoldenCase]:
    """Reads a recorded case from the folder `golden` by its name."""
    return _read_golden


@pytest.fixture
def network_case() -> Callable[[str], GoldenCase]:
    """Reads a recorded network from the folder `golden/networks` by its name.

    `arrays` has the normalised `image` [b, h, w, 3] and the `prediction` [b, h, w, 1] at its size.
    """
    return lambda name: _read_golden(f"networks/{name}")


def _read_golden(name: str) -> GoldenCase:
    with np.load(PROJECT / "tests" / "golden" / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        arrays = {key: file[key] for key in file.files if key != "meta"}
    samples = {key: arrays.pop(key) for key in meta.get("strides", ())}
    return GoldenCase(
        {key: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for key, a in arrays.items()},
        samples,
        meta,
    )
