"""Batch statistics of the latent decoder for a different number of denoising steps.

The sampler scales its noise by a factor that depends on the number of steps, so final latents, and
the inputs of the decoder's BatchNorm layers, depend on it too. Their running statistics are for the
number of steps used in training; with any other number, depth is wrong. Recomputing these few
statistics (the idea of Li et al. 2016, arXiv:1603.04779) needs a few images, no depth and no
training.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Key
from tqdm import tqdm

from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.models.layers import BatchNorm
from diffdepth_jax.models.networks.network import Denoises, Recalibrates
from diffdepth_jax.ops import random
from diffdepth_jax.ops.diffusion import inference_timesteps

# By a layer's path: values per channel, their mean and their biased variance.
_Moments = OrderedDict[tuple[str, ...], tuple[Any, Any, Any]]


def decoder_statistics(
    module: nn.Module,
    variables: Mapping[str, Any],
    images: Sequence[Float[np.ndarray, "_ _ 3"]],
    num_inference_steps: int,
    *,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Mean and unbiased variance of the input of each decoder BatchNorm, over all pixels.

    All pixels of all images have equal weight, so images of one size give the statistics of a batch
    of them. A layer after another one (factor-1 codecs) sees the output of the first with its new
    statistics, which takes another pass over the images.

    Args:
        module: a network that can be recalibrated.
        variables: {"params", "batch_stats"}; not modified.
        images: preprocessed network inputs of any size; each uses different noise.
        num_inference_steps: the number of steps that the statistics are for.
        seed: seed of the noise.
        progress: whether to show a progress bar.

    Returns:
        The decoder's part of the tree `batch_stats`, float32.

    Raises:
        ConfigError: if there are no images, if the network's statistics do not depend on a number
            of steps, or if the sampler does not support that number.
    """
    if not images:
        raise ConfigError("the list of images is empty; at least one is needed")
    if not isinstance(module, Recalibrates):
        raise ConfigError(
            f"{type(module).__name__} does not decode a latent, so nothing in it depends on a "
            "number of steps"
        )
    check_steps(module, num_inference_steps)

    @jax.jit
    def moments(
        variables: Mapping[str, Any], image: Float[Array, "b h w 3"], key: Key[Array, ""]
    ) -> _Moments:
        noise = random.normal(key, module.latent_shape(image.shape))
        return _decoder_moments(
            module, variables, image, noise, num_inference_steps=num_inference_steps, key=key
        )

    def of_all_images() -> Iterator[_Moments]:
        current = replaced(variables, statistics)
        bar = tqdm(images, f"{num_inference_steps} steps", unit=" images", disable=not progress)
        for index, image in enumerate(bar):
            key = jax.random.fold_in(jax.random.key(seed), index)
            yield jax.device_get(moments(current, image[None], key))

    statistics: dict[str, Any] = {}
    for layer in jax.eval_shape(moments, variables, images[0][None], jax.random.key(seed)):
        mean, variance = _pooled([each[layer] for each in of_all_images()])
        new = traverse_util.unflatten_dict({(*layer, "mean"): mean, (*layer, "var"): variance})
        statistics = _merged(statistics, new)
    return statistics


def check_steps(module: Denoises, num_inference_steps: int) -> None:
    """Raises ConfigError for a number of denoising steps that the sampler does not support."""
    try:
        inference_timesteps(module.num_train_timesteps, num_inference_steps)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def replaced(variables: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Variables with part of their batch statistics replaced, for example from
    `decoder_statistics`."""
    return {**variables, "batch_stats": _merged(variables["batch_stats"], statistics)}


def pruned(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree without its empty branches."""
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(tree))


def to_text(recalibrated: Mapping[int, Mapping[str, Any]]) -> str:
    """Serialises named float32 arrays by number of steps as JSON, bit for bit."""
    return json.dumps(
        {
            steps: {name: np.asarray(array).tolist() for name, array in arrays.items()}
            for steps, arrays in sorted(recalibrated.items())
        }
    )


def from_text(text: str) -> dict[int, dict[str, np.ndarray]]:
    """Reads the output of `to_text`.

    Raises:
        WeightsError: if the text is not such JSON.
    """
    try:
        with np.errstate(over="ignore"):  # reported below
            found = {
                int(steps): {name: np.asarray(value, np.float32) for name, value in arrays.items()}
                for steps, arrays in json.loads(text).items()
            }
        for steps, arrays in found.items():
            if steps < 1:
                raise ValueError(f"{steps} denoising steps")
            for name, array in arrays.items():
                if not np.isfinite(array).all():
                    raise ValueError(f"NaN or infinity in {name!r} of {steps} steps")
        return found
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"recalibrated statistics that cannot be read ({error}): recompute them with "
            "tools/recalibrate.py"
        ) from error


def _merged(tree: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    leaves = traverse_util.flatten_dict(tree) | traverse_util.flatten_dict(part)
    return traverse_util.unflatten_dict(leaves)


def _decoder_moments(module: nn.Module, *arguments: Any, **options: Any) -> _Moments:
    """Runs a network and returns the inputs of its decoder's BatchNorm layers, in order."""
    found: _Moments = OrderedDict()
    decoding = False

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal decoding
        if context.method_name == "decode_latent":
            decoding = True
            result = call(*args, **kwargs)
            decoding = False
            return result
        if decoding and isinstance(context.module, BatchNorm):
            values = args[0].astype(jnp.float32)
            axes = tuple(range(values.ndim - 1))
            mean = values.mean(axes, keepdims=True)
            variance = jnp.square(values - mean).mean(axes)
            count = values.size // values.shape[-1]
            found[context.module.path] = count, mean.reshape(-1), variance
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        module.apply(*arguments, **options)
    return found


def _pooled(moments: Sequence[tuple[Any, Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance of several sets of values from the moments of each."""
    counts, means, variances = (np.asarray(each, np.float64) for each in zip(*moments, strict=True))
    mean = np.average(means, axis=0, weights=counts)
    variance = np.average(variances + np.square(means - mean[None]), axis=0, weights=counts)
    unbiased = variance * counts.sum() / (counts.sum() - 1)
    return mean.astype(np.float32), unbiased.astype(np.float32)
