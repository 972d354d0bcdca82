"""What is done with a trained model: metrics on the evaluation data, and pictures."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from diffdepth_jax import config as config_lib
from diffdepth_jax import inference, registry, visualize
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.sources import Sample
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.evaluation import baseline, comparisons, flipping, frames, page
from diffdepth_jax.evaluation import evaluate as scoring
from diffdepth_jax.evaluation.scoring import Protocol
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.ops import random
from diffdepth_jax.training import experiment
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.logging import CSV_NAME, read_csv

PREDICTIONS_FILE = "predictions.png"
_PREDICTIONS = 6  # samples in it
_DENOISING = 6  # moments in denoising.png
_PREDICTS = {"metric_depth": "depth", "relative_disparity": "disparity"}  # by a network's OUTPUT


def check_data(exp: Experiment) -> None:
    """Reads one evaluation frame and what results are compared with, so that no long training ends
    in an error about them."""
    sample = _first_sample(exp)
    for protocol in exp.evaluation.build_all():
        protocol.prepare(sample["image"])
        comparisons.read(exp.evaluation.compare, protocol, {})


def _first_sample(exp: Experiment) -> Sample:
    """The first evaluation frame; where unreadable ones are skipped, the first that is not."""
    data = exp.data
    samples = pipeline.evaluation_samples(data.evaluation, on_error=data.on_error)
    for sample in pipeline.readable(samples):
        return sample
    raise ValueError(
        f"none of the {len(samples)} evaluation frames can be read; the first: "
        f"{samples[0]['error']}"
    )


def evaluate(exp: Experiment, model: DepthModel, workdir: Path) -> dict[str, Any]:
    """Scores a model as the experiment says; writes what `evaluation.results` lists.

    The baseline beside the metrics is the median depth map of the training data; it is left out,
    with a warning, where those are not at hand.

    Returns:
      The result under the (first) protocol.
    """
    return _Evaluation(exp, model, workdir).run()[exp.evaluation.build().name]


def evaluate_checkpoint(
    config: Mapping[str, Any],
    checkpoint: str | os.PathLike,
    workdir: str | os.PathLike | None = None,
    *,
    shard: tuple[int, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores any checkpoint on the evaluation data of a config; see `evaluate`.

    Goes on with an evaluation of the same weights and config that was interrupted in `workdir`, and
    writes `report.html` too.

    Args:
      config: the fields of an `Experiment`; its model is not used, the checkpoint knows its own.
      checkpoint: as for `inference.load`.
      workdir: for the results; the run's directory when None.
      shard: as in `evaluation.evaluate.evaluate_all`.

    Returns:
      Results by the protocol's name; none for a shard.

    Raises:
      ConfigError: if the checkpoint belongs to no run and `workdir` is None.
    """
    exp = experiment.from_mapping(config)
    if workdir is None:
        workdir = _run_directory(Path(checkpoint).expanduser())
    task = _Evaluation(exp, inference.load(checkpoint), Path(workdir).expanduser())
    results = task.run(fingerprint=task.fingerprint(), shard=shard)
    if results:
        task.save_page()
    return results


class _Evaluation:
    """A model on the evaluation data of an experiment."""

    def __init__(self, exp: Experiment, model: DepthModel, workdir: Path) -> None:
        self._exp, self._model, self._workdir = exp, model, workdir
        config = exp.evaluation
        output = registry.module("network", model.config.name).OUTPUT
        predicts = config.predicts or _PREDICTS[output]
        self._protocols = [each.with_options(predicts=predicts) for each in config.build_all()]
        steps = config.num_inference_steps
        self._variables = model.variables_at(steps)
        self._options = {
            **_measured(exp.data.evaluation),
            "flip_tta": config.flip_tta,
            "num_inference_steps": steps,
            "recalibrated": self._variables is not model.variables,
        }
        if config.flip_average == "inverse_depth":
            self._options["flip_average"] = config.flip_average
            self._predict = flipping.in_inverse_depth(
                lambda image: model.predict(image, flip_tta=False, num_inference_steps=steps),
                predicts=predicts,
            )
        else:
            self._predict = lambda image: model.predict(
                image, flip_tta=config.flip_tta, num_inference_steps=steps
            )
        self._samples = pipeline.evaluation_samples(
            exp.data.evaluation, exp.data.evaluation_limit, exp.data.on_error
        )

    def fingerprint(self) -> str:
        """Of the weights and whatever else decides predictions and samples."""
        digest = hashlib.sha256(repr((self._model.config, self._exp.data.evaluation)).encode())
        for path, leaf in jax.tree.leaves_with_path(self._variables):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()

    def run(self, **settings: Any) -> dict[str, dict[str, Any]]:
        found = scoring.evaluate_all(
            self._predict,
            self._samples,
            self._protocols,
            self._workdir,
            baseline_depth=self._median(),
            options=self._options,
            compare=self._exp.evaluation.compare,
            **settings,
        )
        return found or {}

    def save_page(self) -> None:
        page.save(self._workdir, self._protocols, self._predict, self._samples)

    def _median(self) -> np.ndarray | None:
        data = self._exp.data
        if not data.baseline_frames:
            return None
        try:
            training = pipeline.evaluation_samples(
                data.train.source, data.baseline_frames, data.on_error
            )
            depths = (sample["depth"] for sample in pipeline.readable(training))
            return baseline.median_depth_map(depths)
        except FileNotFoundError as error:
            logging.warning("no baseline, as the training data cannot be read: %s", error)
            return None


def _measured(source: Any) -> dict[str, Any]:
    """What a source's config says of its data, to state beside a result: all but the place."""
    fields = config_lib.to_mapping(source)
    return {"dataset": source.name} | {
        name: value
        for name, value in fields.items()
        if name not in ("name", "check_files") and not name.endswith("root")
    }


def _run_directory(checkpoint: Path) -> Path:
    """RUN of RUN, RUN/checkpoints or RUN/checkpoints/STEP."""
    path = checkpoint.absolute()
    for run in (path, path.parent, path.parent.parent):
        if path.is_dir() and (run / "checkpoints").is_dir():
            return run
    if not path.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist")
    raise ConfigError(f"{checkpoint} is in no run's directory: say by --workdir where results go")


def draw_predictions(exp: Experiment, model: DepthModel, workdir: Path) -> None:
    """Draws `predictions.png`: images, depth, ground truth and error of a few samples."""
    protocol = exp.evaluation.build()
    data = exp.data
    samples = pipeline.evaluation_samples(data.evaluation, _PREDICTIONS, data.on_error)
    samples = list(pipeline.readable(samples))
    images = [protocol.prepare(sample["image"]) for sample in samples]
    targets = [
        _depth_of(sample, image, protocol) for sample, image in zip(samples, images, strict=True)
    ]
    predictions = model.predict(images, num_inference_steps=exp.evaluation.num_inference_steps)
    scores = [
        protocol.score_sample(prediction, sample).metrics.get("abs_rel", np.nan)
        for prediction, sample in zip(predictions, samples, strict=True)
    ]
    visualize.save_predictions(workdir / PREDICTIONS_FILE, images, predictions, targets, scores)


def _depth_of(
    sample: Mapping[str, Any], image: UInt8[np.ndarray, "h w 3"], protocol: Protocol
) -> Float[np.ndarray, "h w"]:
    """The measured depth of what the model is fed, at that image's size, to look at."""
    depth = frames.take_depth(sample["depth"], protocol.input)
    return frames.resize_nearest(depth, image.shape[:2])


def draw_denoising(exp: Experiment, model: DepthModel, workdir: Path) -> None:
    """Draws `denoising.png`, the way of one sample's depth, where the model goes in steps."""
    if not hasattr(model.model, "sample"):
        return
    protocol = exp.evaluation.build()
    sample = _first_sample(exp)
    image = protocol.prepare(sample["image"])
    target = _depth_of(sample, image, protocol)
    factor = model.config.codec.factor  # whole latent pixels only
    height, width = (side - side % factor for side in image.shape[:2])
    image, target = image[:height, :width], target[:height, :width]
    depths = denoising_steps(model, image, exp.evaluation.num_inference_steps)
    shown = np.linspace(0, len(depths) - 1, min(_DENOISING, len(depths))).round().astype(int)
    captions = {f"after step {step + 1} of {len(depths)}": depths[step] for step in shown}
    visualize.save_denoising(workdir / "denoising.png", image, captions, target)


def draw_curves(workdir: Path) -> None:
    """Draws `curves.png` of a run's log, where it has one."""
    if (workdir / CSV_NAME).exists():
        visualize.save_curves(workdir / "curves.png", read_csv(workdir / CSV_NAME))


def denoising_steps(
    model: DepthModel,
    image: UInt8[np.ndarray, "h w 3"],
    num_inference_steps: int | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "n h w"]:
    """Depth in metres decoded from the latent after every step of a diffusion model's sampler."""
    network, variables = model.model, model.variables_at(num_inference_steps)
    normalised = model.input_spec.normalise(image)[None]
    key = jax.random.key(seed)
    noise = random.normal(key, network.latent_shape(normalised.shape))

    @jax.jit
    def decode_trajectory(variables: Any, image: jax.Array) -> jax.Array:
        condition = network.apply(variables, image, method="encode_image")
        _, latents = network.apply(
            variables,
            condition,
            noise,
            num_inference_steps,
            key=key,
            return_trajectory=True,
            method="sample",
        )
        return network.apply(variables, latents[:, 0], method="decode_latent")

    return np.asarray(decode_trajectory(variables, normalised))[..., 0]
