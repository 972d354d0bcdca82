"""Clean images, a teacher defined by a formula, and a backend without dependencies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import inference, registry
from tests.adverse import stand_in

SIZES = [(24, 40), (24, 40), (16, 40), (24, 40), (24, 40)]


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch):
    """The stand-in, registered under its name."""
    monkeypatch.setitem(registry.MODULES["backend"], "stand_in", stand_in.__name__)
    monkeypatch.setattr(stand_in, "OPENED", [])
    monkeypatch.setattr(stand_in, "MADE", [])
    return stand_in


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder of five frames in two sizes, with dense depth."""
    root = tmp_path / "frames"
    write_frames(root, SIZES)
    return root


def write_frames(root: Path, sizes) -> None:
    for number, size in enumerate(sizes):
        rng = np.random.default_rng(number)
        for part in ("image", "depth"):
            (root / part).mkdir(parents=True, exist_ok=True)
        image = rng.integers(40, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "image" / f"f{number}.png")
        depth = np.linspace(40, 4, size[0])[:, None] + np.linspace(0, 9, size[1])
        depth[5:12, 8:20] = 3 + number
        np.save(root / "depth" / f"f{number}.npy", depth.astype(np.float32))


class Model:
    """Depth is 200 / (1 + brightness): darker images are farther."""

    def __init__(self, path: Path):
        self.path = path
        self.output = "relative_disparity" if "relative" in path.name else "metric_depth"

    def fingerprint(self, num_inference_steps=None):
        return self.path.read_text()

    def predict(self, images, **options):
        PREDICTED.append(len(images))
        assert len(images) <= options["batch_size"]
        depths = [200 / (1 + image.mean(-1, dtype=np.float32)) for image in images]
        return depths if self.output == "metric_depth" else [1 / depth for depth in depths]


PREDICTED = []  # how many images a `Model` was given in each call


@pytest.fixture
def predicted() -> list[int]:
    """How many images a `Model` was given in each call."""
    return PREDICTED


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a checkpoint of a `Model`; with "relative" in its name, it predicts disparity."""
    monkeypatch.setattr(inference, "load", lambda path, **_: Model(Path(path)))
    PREDICTED.clear()

    def write(name: str = "teacher.pt", weights: str = "w") -> str:
        (tmp_path / name).write_text(weights)
        return str(tmp_path / name)

    return write


@pytest.fixture
def mapping(frames: Path) -> Callable[..., dict]:
    """A config as a mapping; arguments override its entries."""

    def make(**changes):
        return {
            "source": {"name": "folder", "root": str(frames)},
            "labels": "source",
            "conditions": ("night", "fog"),
            "backend": {"name": "stand_in", "batch_size": 2},
            "gallery": {"frames": 3, "width": 40},
        } | changes

    return make
