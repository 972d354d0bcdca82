import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import Source


@pytest.fixture
def save_image() -> Callable[[Path, np.ndarray], None]:
    """Writes an array as an image file, creating its folders."""

    def save(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    return save


@pytest.fixture
def check_contract() -> Callable[[Source], None]:
    """Checks every frame against `Sample`'s contract, after pickling as for worker processes."""

    def check(source: Source) -> None:
        ids = set()
        for sample in pickle.loads(pickle.dumps(source)):
            image, depth, intrinsics = (sample[key] for key in ("image", "depth", "intrinsics"))
            assert image.dtype == np.uint8 and image.shape == (*depth.shape, 3)
            assert depth.dtype == np.float32 and np.isfinite(depth).all() and depth.min() >= 0
            assert intrinsics.dtype == np.float32 and intrinsics.shape == (3, 3)
            assert re.fullmatch(r"[\w+.-]+", sample["id"]), "the id must be usable as a file name"
            assert sample["condition"]
            ids.add(sample["id"])
        assert len(ids) == len(source)

    return check
