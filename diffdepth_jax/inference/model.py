"""A network with its weights, which predicts depth for images."""

import dataclasses
import functools
import hashlib
import typing
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference import flipping, preprocessing, recalibration, sampling
from diffdepth_jax.inference.preprocessing import ImageLike, read_image
from diffdepth_jax.inference.sampling import Maps, Sampled
from diffdepth_jax.models.networks.network import Denoises, JudgesBatch, NetworkConfig, Output
from diffdepth_jax.ops import random
from diffdepth_jax.typing import FlipAverage, InputSpec


@dataclasses.dataclass(frozen=True)
class DepthModel:
    """A network with its weights.

    Attributes:
        model: the linen module; run its methods with `model.apply(variables, ..., method="...")`.
        variables: `{"params": ..., "batch_stats": ...}`.
        config: the frozen config that the module was built from.
        recalibrated: batch statistics computed by `recalibrate`, by number of denoising steps; each
          is a part of the tree `variables["batch_stats"]`.
    """

    model: nn.Module
    variables: Mapping[str, Any] = dataclasses.field(repr=False)
    config: NetworkConfig
    recalibrated: Mapping[int, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    @property
    def input_spec(self) -> InputSpec:
        """The input that the module's methods expect (`predict` does the conversion itself)."""
        return self.config.input_spec

    @property
    def output(self) -> Output:
        """What predictions contain: metres, or inverse depth up to scale and shift."""
        return self.config.output

    @property
    def denoises(self) -> bool:
        """Whether predictions start from noise and take denoising steps."""
        return isinstance(self.model, Denoises)

    def predict(
        self,
        image_or_images: ImageLike | Sequence[ImageLike],
        noise: Any = None,
        seed: int = 0,
        num_inference_steps: int | None = None,
        flip_tta: bool | None = None,
        *,
        flip_average: FlipAverage = "depth",
        batch_size: int = 1,
        num_samples: int | None = None,
    ) -> Maps | Sampled:
        """Predicts depth for one or several images, each at its own size.

        Args:
            image_or_images: uint8 RGB arrays `[h, w, 3]`, Pillow images or paths, of any size: a
              single one, a list, or one array `[b, h, w, 3]`. They are resized according to the
              network's `input_spec`, and its result is resized back.
            noise: the initial latent x_T of each image, with shape `model.latent_shape` (for
              several images, a list or a stacked array); drawn from `seed` if None. Networks that
              do not denoise accept neither noise nor a number of steps.
            seed: 0 to 2**63 - 1. Every image uses the same noise from this seed, so that its depth
              does not depend on the other images.
            num_inference_steps: denoising steps; None for the checkpoint's own number. The decoder
              uses the batch statistics for that number; a warning is given if there are none.
            flip_tta: average the prediction, clipped as below, with that of the mirrored image,
              from the same noise; None for the default in the network's `input_spec`.
            flip_average: how to average, see `flipping.average`.
            batch_size: maximum number of images of equal size per call; networks whose results
              depend on the whole batch get single images regardless. Samples count as images, but
              an image is only encoded once for all samples.
            num_samples: draw this many samples per image, at least 2, with the seeds
              `sampling.sample_seeds(seed, num_samples)`, and return their mean and spread. Each is
              clipped and averaged with the mirrored image's like a single prediction.

        Returns:
            float32 `[h, w]` for one image; a list of these for a list; `[b, h, w]` for one array.
            Depending on `output`, metres, clipped to [0, `config.max_depth`] if the checkpoint has
            one, or relative disparity. With `num_samples`, a tuple of two such results: the
            samples' mean and their standard deviation.

        Raises:
            ConfigError: for an invalid option, such as a negative seed, or samples of a network
              that uses no noise.
            DataError: for an invalid image, or one that is too narrow for the network.
            ValueError: for noise or an array of the wrong shape.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if flip_average not in typing.get_args(FlipAverage):
            known = " or ".join(typing.get_args(FlipAverage))
            raise ConfigError(f"flip_average is {flip_average!r}; it must be {known}")
        check_seed(seed)
        if num_samples is not None:
            self.check_num_samples(num_samples)
            if noise is not None:
                raise ConfigError("noise is for a single sample: leave it out with num_samples")
        if flip_tta is None:
            flip_tta = self.input_spec.flip_tta
        if isinstance(self.model, JudgesBatch):
            batch_size = 1
        options = _Options(noise is not None, seed, num_inference_steps, flip_tta, flip_average)
        variables = self.variables_at(num_inference_steps)
        given: Any = image_or_images
        stacked = isinstance(given, np.ndarray) and given.ndim == 4
        several = stacked or isinstance(given, list | tuple)
        images: list[ImageLike] = list(given) if several else [given]
        noises = [None] * len(images) if noise is None else list(noise) if several else [noise]
        if len(noises) != len(images):
            raise ValueError(f"{len(noises)} noise arrays were given for {len(images)} images")

        results: list[Any] = [None] * len(images)
        for indices, batch in preprocessing.by_size(images, batch_size):
            found: Sequence[Any]
            if num_samples is None:
                latents = [noises[index] for index in indices]
                found = self._predict_batch(variables, batch, latents, options)
            else:
                found = self._sample_batch(variables, batch, num_samples, options, batch_size)
            for index, result in zip(indices, found, strict=True):
                results[index] = result

        def joined(depths: list[np.ndarray]) -> Maps:
            if stacked:
                return np.stack(depths) if depths else np.zeros(given.shape[:3], "f4")
            return depths if several else depths[0]

        if num_samples is None:
            return joined(results)
        return Sampled(*(joined([each[part] for each in results]) for part in range(2)))

    def check_num_samples(self, num_samples: int) -> None:
        """Raises ConfigError for samples of a network that uses no noise, or too few samples."""
        sampling.check_number(self.model, self.config.name, num_samples)

    def check_num_inference_steps(self, num_inference_steps: int | None) -> None:
        """Raises ConfigError for a number of denoising steps that the network does not support."""
        if num_inference_steps is None:
            return
        if not isinstance(self.model, Denoises):
            raise ConfigError(self._no_denoising)
        recalibration.check_steps(self.model, num_inference_steps)

    def variables_at(self, num_inference_steps: int | None = None) -> Mapping[str, Any]:
        """The variables for a number of denoising steps; None for the checkpoint's own.

        Warns, once per number, if the decoder's batch statistics are for a different number.

        Raises:
            ConfigError: for a number that the sampler does not support.
        """
        self.check_num_inference_steps(num_inference_steps)
        if not isinstance(self.model, Denoises):
            return self.variables
        own = self.model.num_inference_steps
        steps = own if num_inference_steps is None else num_inference_steps
        if steps in self.recalibrated:
            return recalibration.replaced(self.variables, self.recalibrated[steps])
        if steps != own and steps not in self._warned_of:
            self._warned_of.add(steps)
            known = ", ".join(str(each) for each in sorted({own, *self.recalibrated}))
            warnings.warn(
                f"the checkpoint has decoder batch statistics for {known} denoising steps, not for "
                f"{steps}, so depth may be far off. tools/recalibrate.py --steps={steps} computes "
                "them from a few images, without training",
                stacklevel=3,
            )
        return self.variables

    def is_recalibrated(self, num_inference_steps: int | None = None) -> bool:
        """Whether predictions with this many steps use statistics from `recalibrate`."""
        return num_inference_steps in self.recalibrated or (
            num_inference_steps is None
            and self.denoises
            and self.model.num_inference_steps in self.recalibrated
        )

    def fingerprint(self, num_inference_steps: int | None = None) -> str:
        """A hash of the config and of the variables for a number of denoising steps."""
        digest = hashlib.sha256(repr(self.config).encode())
        for path, leaf in jax.tree.leaves_with_path(self.variables_at(num_inference_steps)):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()

    @functools.cached_property
    def _warned_of(self) -> set[int]:
        # Python's own "once" filter is reset whenever JAX catches warnings, as it does when
        # compiling.
        return set()

    @property
    def _no_denoising(self) -> str:
        return (
            f"the network {self.config.name!r} does not denoise: set noise and num_inference_steps "
            "to None"
        )

    def recalibrate(
        self,
        images: Sequence[ImageLike],
        num_inference_steps: int,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> "DepthModel":
        """The model with decoder batch statistics for one more number of steps.

        Args:
            images: as in `predict`; about 30, of the kind and size that the model was trained on.
            num_inference_steps, seed, progress: see `recalibration.decoder_statistics`.
        """
        inputs = [preprocessing.to_input(read_image(image), self.input_spec) for image in images]
        return self.recalibrate_preprocessed(
            inputs, num_inference_steps, seed=seed, progress=progress
        )

    def recalibrate_preprocessed(
        self,
        images: Sequence[Float[np.ndarray, "_ _ 3"]],
        num_inference_steps: int,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> "DepthModel":
        """`recalibrate` with preprocessed images, such as those of a training batch.

        Args:
            images: float32, resized and normalised according to the network's `input_spec`.
            num_inference_steps, seed, progress: see `recalibration.decoder_statistics`.
        """
        statistics = recalibration.decoder_statistics(
            self.model,
            self.variables,
            images,
            num_inference_steps,
            seed=seed,
            progress=progress,
        )
        recalibrated = {**self.recalibrated, num_inference_steps: statistics}
        return dataclasses.replace(self, recalibrated=recalibrated)

    def trajectory(
        self, image: ImageLike, num_inference_steps: int | None = None, seed: int = 0
    ) -> Float[np.ndarray, "n h w"]:
        """Depth decoded from the latent after every denoising step, not clipped.

        Args:
            image: as in `predict`.
            num_inference_steps, seed: as in `predict`.

        Raises:
            ConfigError: if the network does not denoise.
        """
        if not self.denoises:
            raise ConfigError(f"the network {self.config.name!r} does not denoise")
        check_seed(seed)
        variables = self.variables_at(num_inference_steps)
        image = read_image(image)
        inputs = preprocessing.to_input(image, self.input_spec)[None]
        key = jax.random.key(seed)
        noise = random.normal(key, self.model.latent_shape(inputs.shape))
        steps = sampling.decode_trajectory(
            self.model, variables, inputs, noise, key, num_inference_steps
        )
        size = image.shape[:2]
        return np.stack(
            [preprocessing.to_image_size(each, size, self.input_spec) for each in np.asarray(steps)]
        )

    def _predict_batch(
        self,
        variables: Mapping[str, Any],
        images: Sequence[np.ndarray],
        noises: Sequence[Any],
        options: "_Options",
    ) -> list[np.ndarray]:
        """Predictions for images of one size."""
        size = images[0].shape[:2]
        inputs = self._inputs(images)
        maps = _apply(
            self.model,
            variables,
            inputs,
            self._sampling(inputs.shape, noises, size, options),
            options.num_inference_steps,
            options.flip_tta,
        )
        return self._finished(np.asarray(maps), size, options)

    def _sample_batch(
        self,
        variables: Mapping[str, Any],
        images: Sequence[np.ndarray],
        num_samples: int,
        options: "_Options",
        batch_size: int,
    ) -> list[Sampled]:
        """Mean and spread of the samples of images of one size."""
        moments = [sampling.Moments() for _ in images]
        for maps in sampling.draw(
            self.model,
            variables,
            self._inputs(images),
            sampling.sample_seeds(options.seed, num_samples),
            batch_size=batch_size,
            num_inference_steps=options.num_inference_steps,
            mirrored_too=options.flip_tta,
        ):
            depths = self._finished(maps, images[0].shape[:2], options)
            for each, depth in zip(moments, depths, strict=True):
                each.add(depth)
        return [each.result() for each in moments]

    def _inputs(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The network's input for images of one size."""
        height, width = images[0].shape[:2]
        preprocessing.check_size(height, width, self.input_spec)
        return np.stack([preprocessing.to_input(image, self.input_spec) for image in images])

    def _finished(
        self, maps: np.ndarray, size: tuple[int, int], options: "_Options"
    ) -> list[np.ndarray]:
        """Results at the images' size, clipped, and averaged with the mirrored images'."""
        depths = [preprocessing.to_image_size(each, size, self.input_spec) for each in maps]
        limit = self.config.max_depth
        if limit is not None:
            depths = [np.clip(depth, 0.0, np.float32(limit)) for depth in depths]
        if not options.flip_tta:
            return depths
        count = len(depths) // 2
        pairs = zip(depths[:count], depths[count:], strict=True)
        average = functools.partial(flipping.average, output=self.output, how=options.flip_average)
        return [average(depth, mirrored) for depth, mirrored in pairs]

    def _sampling(
        self,
        shape: tuple[int, ...],
        noises: Sequence[Any],
        size: tuple[int, int],
        options: "_Options",
    ) -> dict[str, Any]:
        """Additional inputs of a network that starts from noise; empty for others."""
        if not self.denoises:
            if options.has_noise:
                raise ValueError(self._no_denoising)
            return {}
        count = shape[0]
        wanted = tuple(self.model.latent_shape((1, *shape[1:])))
        noise: Array | np.ndarray
        if options.has_noise:
            noise = np.stack([sampling.checked_noise(noise, wanted, size) for noise in noises])
        else:
            noise = random.normal(jax.random.key(options.seed), wanted)
            noise = jnp.broadcast_to(noise, (count, *wanted[1:]))
        # One key per image for the noise in the steps, if the config's eta requires it.
        return {"noise": noise, "key": jnp.broadcast_to(jax.random.key(options.seed), (count,))}


@dataclasses.dataclass(frozen=True)
class _Options:
    """The arguments of `predict` that are the same for all images."""

    has_noise: bool
    seed: int
    num_inference_steps: int | None
    flip_tta: bool
    flip_average: FlipAverage


def check_seed(seed: int) -> None:
    """Raises ConfigError for an invalid seed."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; it must be 0 to 2**63 - 1")


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _apply(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: Float[Array, "b h w 3"],
    sampling: Mapping[str, Any],
    num_inference_steps: int | None,
    mirrored_too: bool,
) -> Float[Array, "b2 h w"]:
    """Compiled once for equal modules, regardless of their weights.

    With `mirrored_too`, predictions for the mirrored images, mirrored back, follow the others. They
    start from the same noise.
    """
    if sampling:
        sampling = {**sampling, "num_inference_steps": num_inference_steps}

    def predict(image: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        return cast(Array, model.apply(variables, image, **sampling))[..., 0]

    if not mirrored_too:
        return predict(image)
    # One after the other, so that `batch_size` limits memory, and results are bit-identical to two
    # calls: a different batch size would sum in a different order.
    depth, mirrored = jax.lax.map(predict, jnp.stack([image, image[:, :, ::-1]]))
    return jnp.concatenate([depth, mirrored[:, :, ::-1]])
