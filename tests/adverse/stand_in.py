"""A backend without dependencies: it darkens the clean image by an amount drawn from the seed."""

import contextlib
import dataclasses
import time
from typing import Literal

import numpy as np
from PIL import Image

from diffdepth_jax import atomic
from diffdepth_jax.adverse.backends import Outcome
from diffdepth_jax.data import io
from diffdepth_jax.errors import ConfigError

CONDITIONS = None
USES_PROMPTS = True
OPENED = []  # the configs opened in this process
MADE = []  # the keys of the items of each batch


@dataclasses.dataclass(frozen=True)
class Config:
    """
    Attributes:
        strength: brightness factor.
        fails, black: items whose key contains this fail, or come back black.
        seconds: time per batch.
        refuses: what `check` raises.
    """

    name: Literal["stand_in"] = "stand_in"
    batch_size: int = 1
    strength: float = 0.5
    fails: str = "nothing"
    black: str = "nothing"
    seconds: float = 0.0
    refuses: str = ""


def title(config, condition):
    return f"stand_in-{condition}"


@contextlib.contextmanager
def open(config, *, python, workdir):
    OPENED.append(config)
    yield Session(config)


class Session:
    def __init__(self, config):
        self.config = config

    def identity(self):
        return {"strength": self.config.strength, "batch_size": self.config.batch_size}

    def check(self, items):
        if self.config.refuses:
            raise ConfigError(self.config.refuses)
        for item in items:
            assert item.image is None or (
                io.read_image(item.image).shape[:2]
                == np.load(item.control).shape
                == np.load(item.depth).shape
                == item.size
            )

    def generate(self, batches):
        for batch in batches:
            MADE.append([item.key for item in batch])
            assert len({item.size for item in batch}) == 1
            assert len(batch) <= self.config.batch_size
            time.sleep(self.config.seconds)
            for item in batch:
                if self.config.fails in item.key:
                    yield Outcome(item.key, error="told to fail")
                    continue
                rng = np.random.default_rng(item.seed)
                # Pixels depend on the batch, which is why a run's batches are fixed.
                place = [other.key for other in batch].index(item.key) + len(batch)
                if item.image is None:
                    image = rng.integers(1, 255, (*item.size, 3)).astype(np.float64)
                else:
                    image = io.read_image(item.image) * self.config.strength + rng.integers(20)
                image = np.clip(image + place, 0, 255).astype(np.uint8)
                if self.config.black in item.key:
                    image[:] = 0
                picture = Image.fromarray(image)
                atomic.write(item.output, lambda file, p=picture: p.save(file, "png"))
                yield Outcome(item.key, details={"place": place})
