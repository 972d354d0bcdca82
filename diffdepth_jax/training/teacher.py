"""Labels that a teacher network predicts from clean images while the student is trained.

In self-distillation (Tosi et al. 2024, "Diffusion Models for Monocular Depth Estimation: Overcoming
Challenging Conditions") the teacher is the pretrained network and sees the clean image, while the
student sees the image generated from it. Labels may be computed once (`generate_adverse.py` stores
them with the images) or, as here, for every batch: the teacher then sees exactly the student's
crop.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from diffdepth_jax import atomic, run_files
from diffdepth_jax import config as config_lib
from diffdepth_jax.errors import ConfigError, naming_file
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.networks.network import (
    Denoises,
    JudgesBatch,
    NetworkConfig,
    PredictsScales,
    of,
)
from diffdepth_jax.ops import random
from diffdepth_jax.processes import Processes
from diffdepth_jax.training import sharding
from diffdepth_jax.training.pretrained import check_options, open_network
from diffdepth_jax.typing import Output
from diffdepth_jax.weights.text import parse_json

# Entries of a batch that the teacher's labels replace, or that are dropped.
_REPLACED = frozenset({"clean_image", "inside", "depth", "valid_mask", "relative_disparity"})
# Config fields, by part, in which a distilled sampler and its student must agree.
_SAME = {
    "codec": ("factor", "latent_channels"),
    "diffusion": ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end"),
}
Labels = dict[str, Any]  # arrays, and a tuple of them


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The network that labels clean images during training.

    Attributes:
        checkpoint: a run, a file or a directory, anything that `inference.load` accepts; None if
            the data have labels.
        options: keyword arguments of `load`, for what its file name does not say, such as
            {"version": 2}; None values are ignored.
        num_inference_steps: denoising steps, for networks that denoise; None for the checkpoint's
            own number.
    """

    checkpoint: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.num_inference_steps is not None:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps}, but checkpoint is not set"
            )
        check_options(self.options, self.checkpoint, "checkpoint")


class Teacher:
    """Labels batches. Its variables are on a mesh's devices, sharded like a train state.

    Args:
        config: must have a checkpoint.
        student: config of the network being trained.
        mesh: the run's mesh.
        dtype: type used by the teacher's convolutions and matrix products.
        depth_range: (low, high) in metres, between which metric labels are valid; None for above 0.
        seed: seed of the noise, if the teacher starts from noise.
        trajectories: whether to add points of the teacher's sampling trajectories
            (`make_trajectory_points`) to batches, which keep the labels of the data.
        step_counts: with `trajectories`, the numbers of denoising steps that the student learns.
        processes: the processes of the run, which all make a teacher together.

    Raises:
        FileError, WeightsError: if the checkpoint cannot be read, by any process.
        ConfigError: if the teacher does not match the student.
    """

    def __init__(
        self,
        config: TeacherConfig,
        student: NetworkConfig,
        mesh: jax.sharding.Mesh,
        *,
        dtype: Any = jnp.float32,
        depth_range: tuple[float, float] | None = None,
        seed: int = 0,
        trajectories: bool = False,
        step_counts: tuple[int, ...] = (),
        processes: Processes | None = None,
    ) -> None:
        checkpoint = config.checkpoint
        assert checkpoint is not None
        with (processes or Processes()).agreed():  # it may be missing on one machine
            model = open_network(checkpoint, config.options, "config.teacher.checkpoint", dtype)
        check_fits(model.config, student, checkpoint)
        if depth_range is not None and model.output == "relative_disparity":
            raise ConfigError(
                f"config.data.train.depth_range is {depth_range} metres, but the labels from "
                f"{checkpoint} are relative disparity: leave it out"
            )
        self._checkpoint = checkpoint
        self._fingerprint = model.fingerprint(config.num_inference_steps)
        variables = model.variables_at(config.num_inference_steps)
        placed = sharding.of_state(variables, mesh)
        self._variables = jax.device_put(variables, placed)
        # A separate stream from those of the student's initial weights and steps.
        self._key = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)
        over_batch, replicated = sharding.over_batch(mesh), sharding.replicated(mesh)
        self._seen: tuple[str, ...]
        self._replaced: frozenset[str]
        if trajectories:
            check_distillable(model, student, checkpoint, config.num_inference_steps, step_counts)
            function = make_trajectory_points(model.model, config.num_inference_steps)
            self._seen, self._replaced = ("image",), frozenset()
        else:
            function = make_labels(model, config.num_inference_steps, depth_range)
            self._seen, self._replaced = ("clean_image", "inside"), _REPLACED
        shown = [over_batch] * len(self._seen)
        self._labels = jax.jit(
            function,
            in_shardings=(placed, *shown, replicated, replicated),
            out_shardings=over_batch,
        )

    def label(self, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The batch of an update with the teacher's labels and without the clean images.

        The data's labels are dropped too. With `trajectories`, nothing is dropped.

        Args:
            batch: from `pipeline.train_iterator`, with `clean_images` unless `trajectories` is set.
            step: number of the update, which with the seed determines the teacher's noise.
        """
        seen = [batch[name] for name in self._seen]
        labels = self._labels(self._variables, *seen, self._key, np.uint32(step))
        return {name: batch[name] for name in batch.keys() - self._replaced} | labels

    def note(self, workdir: Path) -> None:
        """Records in a run's directory which weights label its batches, as JSON
        {"checkpoint", "fingerprint"}."""
        note = {"checkpoint": self._checkpoint, "fingerprint": self._fingerprint}
        atomic.write_text(workdir / run_files.TEACHER, json.dumps(note) + "\n")

    def check_same(self, workdir: Path) -> None:
        """Raises an error if other weights labelled the run so far.

        This happens, for example, if the teacher is a run that has since been trained further.

        Raises:
            ConfigError: if they differ.
            FileError, WeightsError: if the record written by `note` cannot be read.
        """
        file = workdir / run_files.TEACHER
        with naming_file(file, "read"):
            if not file.exists():
                return
            noted = parse_json(file.read_text(errors="replace"), str(file))
        if not isinstance(noted, dict) or noted.get("fingerprint") != self._fingerprint:
            raise ConfigError(
                f"config.teacher.checkpoint: {self._checkpoint} holds other weights than {workdir} "
                f"was started with: use the original ones (options={{'step': ...}} selects one of "
                "a run's checkpoints), use another workdir, or pass --allow_config_changes"
            )


def make_labels(
    model: DepthModel,
    num_inference_steps: int | None = None,
    depth_range: tuple[float, float] | None = None,
) -> Callable[..., Labels]:
    """Returns the pure function `(variables, clean_image, inside, key, step) -> labels`.

    clean_image is float32 [b, h, w, 3], normalised; inside is bool [b, h, w, 1], True where it
    shows the frame; labels are batch entries as in `typing.Batch`, without gradients. Non-finite
    values and constant predictions are marked invalid. A teacher that predicts several scales also
    returns its `inverse_depths`.

    Args:
        model: the teacher; its variables are passed to the function.
        num_inference_steps: denoising steps; None for the model's own.
        depth_range: see `Teacher`.
    """

    def labels(
        variables: Mapping[str, Any],
        clean_image: Float[Array, "b h w 3"],
        inside: Bool[Array, "b h w 1"],
        key: Key[Array, ""],
        step: Array,
    ) -> Labels:
        key = jax.random.fold_in(key, step)
        scales: tuple[Array, ...] = ()
        if isinstance(model.model, PredictsScales):
            scales = cast(
                tuple[Array, ...],
                model.model.apply(variables, clean_image, method="inverse_depths"),
            )
            prediction = 1 / scales[0]
        else:
            prediction = _predict(model.model, variables, clean_image, key, num_inference_steps)
        prediction = prediction.astype(jnp.float32)
        if model.config.max_depth is not None:
            prediction = jnp.clip(prediction, 0.0, model.config.max_depth)
        found = _as_labels(prediction, inside, model.output, depth_range)
        if scales:
            found["inverse_depths"] = scales
        return jax.lax.stop_gradient(found)

    return labels


def make_trajectory_points(
    module: nn.Module, num_inference_steps: int | None = None
) -> Callable[..., Labels]:
    """Returns the pure function `(variables, image, key, step) -> points`.

    The teacher samples each image from different noise, and one random step of each trajectory is
    returned: "latent" [b, h, w, d] at "timestep" [b], and "next_latent" at "next_timestep" after
    the step, -1 for the clean latent. "clean_latent" is the trajectory's end. No gradients flow
    through them.

    Args:
        module: the teacher, which must denoise; its variables are passed to the function.
        num_inference_steps: denoising steps; None for the model's own.
    """
    count = num_inference_steps or module.num_inference_steps

    def points(
        variables: Mapping[str, Any],
        image: Float[Array, "b h w 3"],
        key: Key[Array, ""],
        step: Array,
    ) -> Labels:
        keys = jax.random.split(jax.random.fold_in(key, step), 3)
        noise = random.normal(keys[0], module.latent_shape(image.shape))
        condition = module.apply(variables, image, method="encode_image")
        sampled = module.apply(
            variables,
            condition,
            noise,
            count,
            key=keys[1],
            return_trajectory=True,
            method="sample",
        )
        clean, later = cast(tuple[Array, Array], sampled)
        latents = jnp.concatenate([noise[None], later])
        timesteps = jnp.append(jnp.asarray(module.timesteps(count)), -1)
        images = jnp.arange(len(image))
        drawn = jax.random.randint(keys[2], images.shape, 0, count)
        found = {
            "latent": latents[drawn, images],
            "timestep": timesteps[drawn],
            "next_latent": latents[drawn + 1, images],
            "next_timestep": timesteps[drawn + 1],
            "clean_latent": clean,
        }
        return jax.lax.stop_gradient(found)

    return points


def check_distillable(
    teacher: DepthModel,
    student: NetworkConfig,
    path: str,
    num_inference_steps: int | None,
    step_counts: tuple[int, ...] = (),
) -> None:
    """Rejects a teacher with other latents, another schedule or missing timesteps.

    Args:
        teacher: the trained sampler.
        student: the student's config, for the same network as the teacher.
        path: the teacher's path, for errors.
        num_inference_steps: the teacher's denoising steps.
        step_counts: all numbers of steps that the student learns; empty for its own number only.

    Raises:
        ConfigError: if they do not fit.
    """
    complaint = f"config.teacher.checkpoint: the sampler of {path} cannot be distilled: "
    if not isinstance(teacher.model, Denoises):
        raise ConfigError(f"{complaint}{teacher.config.name!r} does not denoise")
    own = of(student).build(student)
    lines = []
    for part, names in _SAME.items():
        lines += [
            f"{part}.{name}: {theirs} -> {ours}"
            for name in names
            if (theirs := getattr(getattr(teacher.config, part), name))
            != (ours := getattr(getattr(student, part), name))
        ]
    if lines:
        raise ConfigError(f"{complaint}config.model denoises other latents ({'; '.join(lines)})")
    known = teacher.model.timesteps(num_inference_steps).tolist()
    for count in step_counts or (own.num_inference_steps,):
        wanted = own.timesteps(count).tolist()
        if set(wanted) <= set(known):
            continue
        raise ConfigError(
            f"{complaint}its timesteps {known} lack some of the student's {wanted}; use "
            "timestep_spacing 'trailing' for both, and a number of steps that divides the "
            "teacher's"
        )


def check_fits(teacher: NetworkConfig, student: NetworkConfig, path: str) -> None:
    """Raises ConfigError unless teacher and student are the same network with the same input.

    Args:
        teacher, student: configs of the networks.
        path: the teacher's path, for errors.
    """
    complaint = f"config.teacher.checkpoint: {path} cannot label batches of config.model: "
    remedy = (
        "; use a teacher of the same kind, or let generate_adverse.py store the labels of any "
        "teacher with the images"
    )
    if teacher.name != student.name:
        raise ConfigError(f"{complaint}it is a {teacher.name!r}, not a {student.name!r}{remedy}")
    if teacher.output != student.output:
        raise ConfigError(
            f"{complaint}it predicts {teacher.output}, config.model {student.output}{remedy}"
        )
    lines = config_lib.differences(
        config_lib.to_mapping(student.input_spec),
        config_lib.to_mapping(teacher.input_spec),
        "input_spec",
    )
    if lines:
        raise ConfigError(f"{complaint}it needs other images ({', '.join(lines)}){remedy}")


def _predict(
    module: nn.Module,
    variables: Mapping[str, Any],
    image: Float[Array, "b h w 3"],
    key: Key[Array, ""],
    num_inference_steps: int | None,
) -> Float[Array, "b h w 1"]:
    """A network's output for each image, as in inference."""
    if isinstance(module, Denoises):
        output = module.apply(
            variables,
            image,
            noise=random.normal(key, module.latent_shape(image.shape)),
            key=jax.random.split(key, image.shape[0]),
            num_inference_steps=num_inference_steps,
        )
        return cast(Array, output)
    if isinstance(module, JudgesBatch):
        one = jax.vmap(lambda image: module.apply(variables, image[None])[0])
        return one(image)
    return cast(Array, module.apply(variables, image))


def _as_labels(
    prediction: Float[Array, "b h w 1"],
    inside: Bool[Array, "b h w 1"],
    output: Output,
    depth_range: tuple[float, float] | None,
) -> Labels:
    known = inside & jnp.isfinite(prediction)
    # Nothing can be learnt from constant predictions, for example from a dead teacher.
    axes: dict[str, Any] = {"axis": (1, 2, 3), "keepdims": True, "where": known}
    least = jnp.min(prediction, initial=jnp.inf, **axes)
    most = jnp.max(prediction, initial=-jnp.inf, **axes)
    known &= most > least
    if output == "relative_disparity":
        positive = known & (prediction > 0)
        return {
            "relative_disparity": jnp.where(known, prediction, 0.0),
            "depth": jnp.where(positive, 1 / jnp.where(positive, prediction, 1.0), 0.0),
            "valid_mask": known,
        }
    low, high = depth_range or (0.0, jnp.inf)
    return {
        "depth": jnp.where(known, prediction, 0.0),
        "valid_mask": known & (prediction > low) & (prediction < high),
    }
