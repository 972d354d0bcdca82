"""Any checkpoint to a `DepthModel`, and images to depth.

`load` takes a run of ours, an official PyTorch checkpoint, a safetensors file or a state dict; the
architecture comes from the checkpoint itself. Arrays are all that is read: no optimiser state, no
data pipeline, no PyTorch.
"""

import dataclasses
import functools
import glob
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float
from PIL import Image
from tqdm import tqdm

from diffdepth_jax import atomic, recalibration, registry, visualize
from diffdepth_jax import config as config_lib
from diffdepth_jax.data import io
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.ops import random
from diffdepth_jax.ops.diffusion import inference_timesteps
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights import files, orbax, rules

_RECALIBRATED = "recalibrated.json"  # in a checkpoint's directory, beside `state`
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}

ImageLike = np.ndarray | Image.Image | str | os.PathLike


@dataclasses.dataclass(frozen=True)
class DepthModel:
    """A network with its weights.

    Attributes:
        model: the linen module; its methods run by `model.apply(variables, ..., method="...")`.
        variables: `{"params": ..., "batch_stats": ...}`.
        config: the frozen config that the module was built from.
        input_spec: how images are normalised for the module's methods (`predict` does it itself).
        recalibrated: by number of denoising steps, the batch statistics that `recalibrate` found;
            a part of the tree `variables["batch_stats"]` each.
    """

    model: nn.Module
    variables: Mapping[str, Any] = dataclasses.field(repr=False)
    config: Any
    input_spec: InputSpec
    recalibrated: Mapping[int, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def predict(
        self,
        image_or_images: ImageLike | Sequence[ImageLike],
        noise: Any = None,
        seed: int = 0,
        num_inference_steps: int | None = None,
        flip_tta: bool = False,
    ) -> np.ndarray | list[np.ndarray]:
        """Depth of one image or of several, each at its own size.

        Args:
            image_or_images: uint8 RGB arrays `[h, w, 3]`, Pillow images or paths, of any size; one,
              a list of them, or one array `[b, h, w, 3]`.
            noise: the initial latent x_T of each image, `model.latent_shape` of it (for several
              images a list or a stacked array); drawn from `seed` when None. A network that does
              no denoising takes neither noise nor a number of steps.
            seed: every image draws its noise anew from this seed, so that its depth does not depend
              on what else is in the list.
            num_inference_steps: denoising steps; the checkpoint's own number when None. The decoder
              uses the batch statistics of that number; without any a warning is given.
            flip_tta: average the prediction, clipped as below, with that of the mirrored image,
              from the same noise.

        Returns:
            float32 `[h, w]` in metres for one image, clipped to [0, `config.max_depth`] where the
            checkpoint states one; a list of them for a list; `[b, h, w]` for one array.
        """
        variables = self.variables_at(num_inference_steps)
        options = seed, num_inference_steps, flip_tta
        stacked = isinstance(image_or_images, np.ndarray) and image_or_images.ndim == 4
        if stacked or isinstance(image_or_images, list | tuple):
            images = list(image_or_images)
            noises = [None] * len(images) if noise is None else list(noise)
            if len(noises) != len(images):
                raise ValueError(f"{len(noises)} noise arrays were given for {len(images)} images")
            depths = [
                self._predict_one(variables, image, latent, *options)
                for image, latent in zip(images, noises, strict=True)
            ]
            if stacked:
                return np.stack(depths) if depths else np.zeros(image_or_images.shape[:3], "f4")
            return depths
        return self._predict_one(variables, image_or_images, noise, *options)

    def variables_at(self, num_inference_steps: int | None = None) -> Mapping[str, Any]:
        """The variables for a number of denoising steps; the checkpoint's own when None.

        Warns, once for a number, where the decoder's batch statistics belong to another one.
        """
        diffusion = getattr(self.config, "diffusion", None)
        if diffusion is None:  # nothing depends on steps
            return self.variables
        own = diffusion.num_inference_steps
        steps = own if num_inference_steps is None else num_inference_steps
        if steps in self.recalibrated:
            return recalibration.replaced(self.variables, self.recalibrated[steps])
        inference_timesteps(diffusion.num_train_timesteps, steps)  # an error goes before a warning
        if steps != own and steps not in self._warned_of:
            self._warned_of.add(steps)
            known = ", ".join(str(each) for each in sorted({own, *self.recalibrated}))
            warnings.warn(
                f"the checkpoint has its decoder's batch statistics for {known} denoising steps, "
                f"not for {steps}: depth may be far off. tools/recalibrate.py --steps={steps} "
                "takes them from a few images, without training",
                stacklevel=3,
            )
        return self.variables

    @functools.cached_property
    def _warned_of(self) -> set[int]:
        # Python's own "once" is forgotten whenever JAX catches warnings, as it does in compiling.
        return set()

    def recalibrate(
        self,
        images: Sequence[ImageLike],
        num_inference_steps: int,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> "DepthModel":
        """The same model with the decoder's batch statistics for one more number of steps.

        Args:
            images: as for `predict`; some 30 of the kind, and of the size, that the model was
              trained on.
            num_inference_steps, seed, progress: see `recalibration.decoder_statistics`.
        """
        statistics = recalibration.decoder_statistics(
            self.model,
            self.variables,
            self.input_spec,
            [read_image(image) for image in images],
            num_inference_steps,
            seed=seed,
            progress=progress,
        )
        recalibrated = {**self.recalibrated, num_inference_steps: statistics}
        return dataclasses.replace(self, recalibrated=recalibrated)

    def _predict_one(
        self,
        variables: Mapping[str, Any],
        source: ImageLike,
        noise: Any,
        seed: int,
        steps: int | None,
        flip_tta: bool,
    ) -> np.ndarray:
        image = read_image(source)
        sampling = self._sampling(image.shape, noise, seed, steps)
        limit = getattr(self.config, "max_depth", None)

        def predict(normalised: np.ndarray) -> np.ndarray:
            depth = _apply(self.model, variables, normalised[None], sampling, steps)
            depth = np.asarray(depth[0, :, :, 0], np.float32)
            return depth if limit is None else np.clip(depth, 0.0, np.float32(limit))

        normalised = self.input_spec.normalise(image)
        depth = predict(normalised)
        return (depth + predict(normalised[:, ::-1])[:, ::-1]) / 2 if flip_tta else depth

    def _sampling(
        self, image_shape: tuple[int, ...], noise: Any, seed: int, steps: int | None
    ) -> dict[str, Any]:
        """What a network that starts from noise takes beside the image; others take nothing."""
        if not hasattr(self.model, "latent_shape"):
            if noise is not None or steps is not None:
                raise ValueError(
                    f"the network {self.config.name!r} does no denoising: leave noise and "
                    "num_inference_steps at None"
                )
            return {}
        shape = tuple(self.model.latent_shape((1, *image_shape)))
        if noise is None:
            noise = random.normal(jax.random.key(seed), shape)
        else:
            noise = np.asarray(noise, np.float32)
            if noise.shape not in (shape, shape[1:]):
                raise ValueError(
                    f"noise has shape {noise.shape}; an image of {image_shape[:2]} pixels needs "
                    f"{shape[1:]}"
                )
            noise = noise.reshape(shape)
        # The key is of the steps' noise, which the config's eta asks for.
        return {"noise": noise, "key": jax.random.key(seed)}


@functools.partial(jax.jit, static_argnums=(0, 4))
def _apply(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: Float[Array, "b h w 3"],
    sampling: Mapping[str, Any],
    num_inference_steps: int | None,
) -> Float[Array, "b h w 1"]:
    """Compiled once for equal modules, whatever their weights."""
    if sampling:
        sampling = {**sampling, "num_inference_steps": num_inference_steps}
    return model.apply(variables, image, **sampling)


def load(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    step: orbax.Step | None = None,
    dtype: Any = jnp.float32,
) -> DepthModel:
    """Rebuilds a model with its weights from what a checkpoint alone says.

    Args:
        source: a run directory or checkpoint directory of ours; an official `.pt`/`.pth` file (read
          without PyTorch, nothing in it is executed); a `.safetensors` file; or a state dict, names
          to arrays in PyTorch's layout.
        step: which of a run's checkpoints; the latest when None; "best" for the one that the
          run's evaluations found best.
        dtype: of the convolutions and matrix products, `jnp.bfloat16` for speed on accelerators;
            parameters, the norms' statistics, latents and depth stay float32.

    Raises:
        FileNotFoundError: if there is no such file or directory.
        ValueError: if the weights belong to no known network or do not fit it; says which and why.
    """
    if isinstance(source, Mapping):
        return _from_state_dict(source, {}, "the given state dict", dtype)
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a run directory, a .pt or a .safetensors file"
        )
    if path.is_dir():
        return _from_run(path, step, dtype)
    if step is not None:
        raise ValueError(f"step={step} was asked of the single file {path}; it has no steps")
    contents = files.read(path)
    return _from_state_dict(contents.state_dict, contents.metadata, str(path), dtype)


def _from_run(path: Path, step: orbax.Step | None, dtype: Any) -> DepthModel:
    directory = orbax.checkpoint_directory(path, step=step)
    contents = orbax.read_arrays(directory)
    mapping = contents.config["model"]
    network = registry.module("network", mapping["name"])
    config = config_lib.chosen("network", mapping, resolve=registry.module, path="config.model")
    model = network.build(config, dtype)
    # Where an average of the parameters was kept, it is what is evaluated.
    params = contents.ema_params or contents.params
    variables = {"params": params, "batch_stats": contents.batch_stats}
    rules.check(variables, _expected_variables(model), f"{path} cannot be loaded")
    recalibrated = {}
    if (file := directory / _RECALIBRATED).exists():
        try:
            found = recalibration.from_text(file.read_text())
        except ValueError as error:
            raise WeightsError(f"{file} has {error}") from error
        recalibrated = {
            steps: traverse_util.unflatten_dict(leaves, sep="/") for steps, leaves in found.items()
        }
    variables = jax.tree.map(jnp.asarray, variables)
    return DepthModel(model, variables, config, network.INPUT, recalibrated)


def _from_state_dict(
    state_dict: Mapping[str, Any], metadata: Mapping[str, Any], name: str, dtype: Any
) -> DepthModel:
    state_dict = {key: np.asarray(value) for key, value in state_dict.items()}
    try:
        network = registry.match_network(state_dict)
        config = network.infer({key: value.shape for key, value in state_dict.items()})
        if config is None:
            raise ValueError("its names and shapes fit no known architecture of this network")
        arguments = metadata.get("args") or {}
        if isinstance(arguments, str):  # a safetensors file's metadata are text
            arguments = json.loads(arguments)
        config = network.with_arguments(config, arguments)
        model = network.build(config, dtype)
        table, expected = network.rules(config), _expected_variables(model)
        variables = rules.convert(state_dict, table, expected)
        found = recalibration.from_text(metadata.get("recalibrated", "{}"))
        part = (*table, rules.Fresh(".*", "statistics of the decoder only"))
        recalibrated = {
            steps: recalibration.pruned(rules.convert(arrays, part, expected)["batch_stats"])
            for steps, arrays in found.items()
        }
    except json.JSONDecodeError as error:
        raise WeightsError(f"{name} cannot be loaded: its metadata args are no JSON") from error
    except ValueError as error:
        raise type(error)(f"{name} cannot be loaded: {error}") from error
    variables = jax.tree.map(jnp.asarray, variables)
    return DepthModel(model, variables, config, network.INPUT, recalibrated)


def export(model: DepthModel, path: str | os.PathLike) -> list[str]:
    """Writes a model as safetensors under its publication's PyTorch names; `load` reads it back.

    Recalibrated statistics go into the metadata, which PyTorch does not look at: the entry
    `recalibrated` is JSON, {number of steps: {name: values}}.

    Returns:
        The fields of the config that the file does not tell, as lines `path: value -> what load
        takes it for`.

    Raises:
        WeightsError: for a model that the publication has no names for.
    """
    network = registry.module("network", model.config.name)
    table = network.rules(model.config)

    def named(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return rules.export(variables, table, rules.names(variables, table))

    metadata = {"args": json.dumps(network.arguments(model.config))}
    if model.recalibrated:
        found = {steps: named({"batch_stats": part}) for steps, part in model.recalibrated.items()}
        metadata["recalibrated"] = recalibration.to_text(found)
    files.write_safetensors(path, named(model.variables), metadata)
    return config_lib.differences(
        config_lib.to_mapping(model.config), config_lib.to_mapping(load(path).config)
    )


def save_recalibrated(model: DepthModel, directory: str | os.PathLike) -> None:
    """Writes recalibrated statistics beside the weights of our own that they were found with.

    Args:
        model: with `recalibrated`, as `DepthModel.recalibrate` returns it.
        directory: `checkpoints/<step>` of the run that the model was loaded from, as
            `weights.orbax.checkpoint_directory` finds it; `load` reads them there.
    """
    found = {
        steps: traverse_util.flatten_dict(part, sep="/")
        for steps, part in model.recalibrated.items()
    }
    atomic.write_text(Path(directory) / _RECALIBRATED, recalibration.to_text(found) + "\n")


def _expected_variables(model: nn.Module) -> Mapping[str, Any]:
    """Shapes and types of a module's variables, without computing any."""
    return jax.eval_shape(model.init_variables, jax.random.key(0))


def read_image(source: ImageLike) -> np.ndarray:
    """uint8 RGB `[h, w, 3]` from an array, a Pillow image or a path; turned upright by EXIF data.

    Raises:
        FileNotFoundError, ValueError, TypeError: naming the file or what the array is like.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
            raise ValueError(
                f"an image array must be uint8 RGB [h, w, 3], not {source.dtype} "
                f"{list(source.shape)}"
            )
        return source
    if isinstance(source, Image.Image):
        return io.as_rgb(source, "the Pillow image", upright=True)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"an image must be an array, a Pillow image or a path, not {type(source).__name__}"
        )
    return io.read_image(Path(source).expanduser(), upright=True)


def find_images(pattern: str | os.PathLike) -> list[Path]:
    """The image files that a path, a directory or a glob pattern means, sorted.

    Raises:
        FileNotFoundError: if there are none.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        paths = [entry for entry in path.iterdir() if entry.suffix.lower() in _IMAGE_SUFFIXES]
        wanted = ", ".join(sorted(_IMAGE_SUFFIXES))
    else:
        paths = [Path(entry) for entry in glob.glob(str(path), recursive=True)]
        paths = [entry for entry in paths if entry.is_file()]
        wanted = "a file"
    if not paths:
        raise FileNotFoundError(f"no image found: {pattern} holds or matches none ({wanted})")
    return sorted(paths)


def predict_files(
    model: DepthModel, paths: Sequence[Path], output: str | os.PathLike, **options: Any
) -> list[str]:
    """Predicts depth for image files and writes it as 16-bit PNG, `.npy` and a colour picture.

    Args:
        model: what `load` returned.
        paths: image files, as `find_images` returns them.
        output: directory, made if needed; gets `STEM.png` (metres x 256; at most 255.99),
          `STEM.npy` (float32, metres) and `STEM_colour.png` for each image, in the folders that
          the images have below the one that is common to all.
        **options: as for `DepthModel.predict`.

    Returns:
        One line for each image that could not be read; the others are done all the same.

    Raises:
        ValueError: if a result would replace an image or another result; before any work.
    """
    output = Path(output).expanduser()
    targets = _result_paths(paths, output)
    failures = []
    for path in (bar := tqdm(paths, unit="image")):
        try:
            image = read_image(path)
        except (OSError, ValueError) as error:
            failures.append(f"skipped {path}: {error}")
            bar.write(failures[-1], file=sys.stderr)
            continue
        depth = model.predict(image, **options)
        # 0 means "no depth" in this format, so the nearest depth it can hold is 1/256 m.
        steps = np.clip(np.rint(depth * 256), 1, 65535).astype(np.uint16)
        colour = Image.fromarray(visualize.colour_depth(depth))
        png, npy, picture = targets[path]
        png.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(png, lambda file, a=steps: Image.fromarray(a).save(file, "png"))
        atomic.write(npy, lambda file, a=depth: np.save(file, a))
        atomic.write(picture, lambda file, a=colour: a.save(file, "png"))
    return failures


def _result_paths(paths: Sequence[Path], output: Path) -> dict[Path, list[Path]]:
    """Where each image's three results go."""
    common = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    taken = {path.resolve(): path for path in paths}
    targets = {}
    for path in paths:
        stem = output / path.absolute().relative_to(common).with_suffix("")
        ends = (".png", ".npy", "_colour.png")
        targets[path] = [stem.with_name(stem.name + end) for end in ends]
        for target in targets[path]:
            other = taken.setdefault(target.resolve(), path)
            if other is not path or target.resolve() == path.resolve():
                raise ValueError(
                    f"the result {target} of {path} would replace what belongs to {other}: choose "
                    "another output directory, or predict them apart"
                )
    return targets
