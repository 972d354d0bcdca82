"""Sampling: noise, denoising steps, and several samples of an image at once."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.networks.network import Denoises
from diffdepth_jax.ops import random

# A map, or several as returned by `DepthModel.predict`.
Maps = np.ndarray | list[np.ndarray]


class Sampled(NamedTuple):
    """Statistics of several samples per pixel; for several images, in the form `predict` returns.

    Attributes:
        mean: mean of the samples, in their unit.
        spread: their standard deviation (with n - 1), in the same unit.
    """

    mean: Maps
    spread: Maps


def sample_seeds(seed: int, num_samples: int) -> list[int]:
    """The seeds of several samples; fewer samples use the first of them."""
    return np.random.SeedSequence(seed).generate_state(num_samples, np.uint32).tolist()


def check_number(module: nn.Module, name: str, num_samples: int) -> None:
    """Raises ConfigError for a number of samples that has no spread.

    Args:
        module: the module of the network `name`; a network without noise has no samples.
    """
    if not isinstance(module, Denoises):
        raise ConfigError(
            f"the network {name!r} uses no noise, so all samples would be equal: leave out "
            "num_samples"
        )
    if num_samples < 2:
        raise ConfigError(
            f"num_samples is {num_samples}; a spread needs at least 2 (leave it out for a single "
            "prediction)"
        )


def draw(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: Float[np.ndarray, "b h w 3"],
    seeds: list[int],
    *,
    batch_size: int,
    num_inference_steps: int | None,
    mirrored_too: bool,
) -> Iterator[Float[np.ndarray, "m h w"]]:
    """The network's result for each seed, as if computed separately.

    Images are encoded once. Then up to `batch_size` results, with all images of a seed together,
    are computed at a time. All calls have the same shape, so that one program is compiled.

    Args:
        model: a network that uses noise.
        image: preprocessed images of one size.
        seeds: the samples' seeds; all images of a sample start from the same noise.
        batch_size: at least the number of images.
        mirrored_too: also for the mirrored images, from the same noise; these follow the others,
            mirrored back.

    Yields:
        For each seed, the maps of all images (followed by those of all mirrored images).
    """
    count = len(image)
    rounds = -(-len(seeds) // max(batch_size // count, 1))
    at_once = -(-len(seeds) // rounds)
    shape = model.latent_shape((1, *image.shape[1:]))[1:]
    conditions = _conditions(model, variables, image, mirrored_too)
    for start in range(0, len(seeds), at_once):
        drawn = seeds[start : start + at_once]
        padded = drawn + drawn[-1:] * (at_once - len(drawn))
        keys = jnp.stack([jax.random.key(seed) for seed in padded])
        noise = jnp.concatenate([random.normal(key, (1, *shape)) for key in keys])
        maps = _of_noise(
            model, variables, conditions, noise, keys, num_inference_steps, image.shape
        )
        yield from np.asarray(maps)[: len(drawn)]


def checked_noise(noise: Any, shape: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """The initial latent of one image, of `shape` without its first axis."""
    noise = np.asarray(noise, np.float32)
    if noise.shape not in (shape, shape[1:]):
        raise ValueError(
            f"noise has shape {noise.shape}; an image of {size} pixels needs {shape[1:]}"
        )
    return noise.reshape(shape[1:])


class Moments:
    """Running mean and standard deviation of arrays, in float64 (Welford 1962).

    Where an array is infinite, so is the mean, and the deviation is NaN.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0
        self._sum: Any = 0.0

    def add(self, array: np.ndarray) -> None:
        self._count += 1
        values = array.astype(np.float64)
        with np.errstate(invalid="ignore"):
            difference = values - self._mean
            self._mean = self._mean + difference / self._count
            self._squares = self._squares + difference * (values - self._mean)
        self._sum = self._sum + values  # preserves infinity, whose difference is NaN

    def result(self) -> Sampled:
        """Mean and deviation in float32; needs at least two arrays."""
        mean = np.where(np.isinf(self._sum), self._sum, self._mean)
        spread = np.sqrt(self._squares / (self._count - 1))
        return Sampled(mean.astype(np.float32), spread.astype(np.float32))


@partial(jax.jit, static_argnums=(0, 5))
def decode_trajectory(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: Float[Array, "1 h w 3"],
    noise: Float[Array, "1 h2 w2 d"],
    key: Array,
    num_inference_steps: int | None,
) -> Float[Array, "n h w"]:
    """Depth decoded from the latent after every denoising step."""
    condition = model.apply(variables, image, method="condition")
    _, latents = model.apply(
        variables,
        condition,
        noise,
        num_inference_steps,
        key=key,
        return_trajectory=True,
        method="sample",
    )

    def decode(latent: Float[Array, "1 h2 w2 d"]) -> Float[Array, "h3 w3"]:
        depth: Any = model.apply(variables, latent, method="decode_latent")
        return depth[0, ..., 0]

    # One after the other, so that memory does not grow with the number of steps.
    return jax.lax.map(decode, latents)[:, : image.shape[1], : image.shape[2]]


@partial(jax.jit, static_argnums=(0, 3))
def _conditions(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: Float[Array, "b h w 3"],
    mirrored_too: bool,
) -> Float[Array, "m b h2 w2 c"]:
    images = jnp.stack([image, image[:, :, ::-1]] if mirrored_too else [image])
    return jax.lax.map(lambda each: model.apply(variables, each, method="condition"), images)


@partial(jax.jit, static_argnums=(0, 5, 6))
def _of_noise(
    model: nn.Module,
    variables: Mapping[str, Any],
    conditions: Float[Array, "m b h2 w2 c"],
    noise: Float[Array, "n h3 w3 d"],
    keys: Key[Array, " n"],
    num_inference_steps: int | None,
    image_shape: tuple[int, ...],
) -> Float[Array, "n mb h w"]:
    count, samples = conditions.shape[1], len(noise)

    def depth(condition: Float[Array, "b h2 w2 c"]) -> Float[Array, "nb h w"]:
        found: Any = model.apply(
            variables,
            jnp.tile(condition, (samples, 1, 1, 1)),
            jnp.repeat(noise, count, axis=0),
            image_shape[1:3],
            num_inference_steps=num_inference_steps,
            key=jnp.repeat(keys, count),
            method="depth_from_noise",
        )
        return found[..., 0]

    # One after the other, so that `batch_size` limits memory.
    maps = jax.lax.map(depth, conditions)
    maps = maps.reshape(-1, samples, count, *maps.shape[2:])
    if len(conditions) == 2:
        maps = jnp.stack([maps[0], maps[1][..., ::-1]])
    return jnp.swapaxes(maps, 0, 1).reshape(samples, -1, *maps.shape[3:])
