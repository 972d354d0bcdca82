"""Evaluates a checkpoint, or any model's saved depth maps, under one or several protocols.

    python evaluate.py --config=configs/kitti.py --checkpoint=runs/kitti
    python evaluate.py --config=configs/kitti.py --predictions=DIR --workdir=OUT
    python evaluate.py --protocol=kitti_eigen --predictions=DIR --ground_truth=DIR --workdir=OUT

Writes `metrics.json`, `per_image.csv` and `report.html`; with --protocol=A,B the first two go to
OUT/A and OUT/B. Saved depth maps are 16-bit PNG or `.npy` in metres, as written by `predict.py`.
They are scored against the data set of a config, matched by frame ids or image paths, or against a
folder of maps with the same names. Running the same command resumes an interrupted evaluation of a
checkpoint; --shard=0/4 to --shard=3/4 divide it among four processes, and the command without
--shard then combines their rows. With dense, exact ground truth, --boundary measures the sharpness
of depth edges; --num_samples=N, for networks that use noise, scores the mean of N samples and
measures whether their spread predicts the error.
"""

from pathlib import Path
from typing import Any

from absl import flags

from diffdepth_jax import cli, ending

FLAGS = flags.FLAGS
# A model's prediction shows its input; only for saved predictions is this unknown.
OF_PREDICTIONS = ("prediction_frame", "resize_prediction", "fill_zeros")

_COMMON = {
    "Predictions": {
        **cli.CHECKPOINT,
        "predictions": "DIR|GLOB",
        "png_scale": "NUMBER",
    },
    "Ground truth": {"config": "FILE", "ground_truth": "DIR|GLOB"},
    "Scoring": {
        "protocol": "NAME,...",
        "crop": "NAME",
        "min_depth": "METRES",
        "max_depth": "METRES",
        "alignment": "NAME",
        "flip_tta": "",
        "boundary": "",
        "num_inference_steps": "N",
        "num_samples": "N",
    },
    "Processing and output": {
        "workdir": "DIR",
        "batch_size": "N",
        "shard": "I/N",
        "compare": "NAME=PATH",
    },
}


def run() -> None:
    """Parses the command line and runs the evaluation."""
    config = cli.define_config(required=False)
    cli.define_checkpoint()
    flags.DEFINE_string(
        "predictions", None, "Saved depth maps of any model, instead of --checkpoint."
    )
    flags.DEFINE_string(
        "ground_truth", None, "Ground truth depth maps, instead of the data set of a config."
    )
    flags.DEFINE_float("png_scale", None, "Their value per metre, if they are PNG; 256 by default.")
    flags.DEFINE_float("ground_truth_png_scale", None, "The ground truth's, if it differs.")
    cli.define_directory("workdir", "Where the results go; by default the run's directory.")
    flags.DEFINE_string("shard", None, "Only every N-th image, starting with number I (from 0).")
    flags.DEFINE_multi_string(
        "compare", [], "Another metrics.json, or its directory, to compare with."
    )
    of_evaluation = _define_options()
    _define_checks()

    def main(_: list[str]) -> None:
        from diffdepth_jax.evaluation.report import comparisons, tables

        options = {flag.name: flag.value for flag in of_evaluation if flag.value is not None}
        compare = comparisons.parse(FLAGS.compare)
        results = (
            _of_folders(options, compare)
            if FLAGS.config is None
            else _of_config(config, options, compare)
        )
        if FLAGS.shard is not None:
            print(
                f"shard {FLAGS.shard} is done; run the same command without --shard to write the "
                "result"
            )
        print("\n\n".join(tables.table(result) for result in results.values()))

    cli.run(main, _COMMON)


def _define_options() -> list[flags.FlagHolder]:
    """Flags that become fields of `config.evaluation` or options of the protocols."""
    return [
        flags.DEFINE_string("protocol", None, "kitti_eigen, nyu, nuscenes, ...; or several: A,B."),
        flags.DEFINE_string("resize_input", None, "none: do not resize the model's input."),
        flags.DEFINE_string("crop", None, "none, garg or eigen."),
        flags.DEFINE_string("crop_reference", None, "kb or full: the frame that is scored."),
        flags.DEFINE_float("min_depth", None, "Smallest depth that is scored, in metres."),
        flags.DEFINE_float("max_depth", None, "Largest depth that is scored; inf for no limit."),
        flags.DEFINE_float(
            "clip_min", None, "Metres; predictions are clipped to it, by default min_depth."
        ),
        flags.DEFINE_float(
            "clip_max", None, "Metres; predictions are clipped to it, by default max_depth."
        ),
        flags.DEFINE_string(
            "alignment", None, "none, median, median_low, lsq_depth or lsq_disparity."
        ),
        flags.DEFINE_string("predicts", None, "depth or disparity: what predictions are."),
        flags.DEFINE_string(
            "fit_pixels", None, "valid, or positive: only such disparities are fitted."
        ),
        flags.DEFINE_float("disparity_floor", None, "1/metres, for lsq_disparity."),
        flags.DEFINE_string("prediction_frame", None, "full or kb: what predictions show."),
        flags.DEFINE_string("resize_prediction", None, "none, bilinear or bilinear_half_pixel."),
        flags.DEFINE_string(
            "fill_zeros", None, "background: fill missing predictions, as KITTI does."
        ),
        flags.DEFINE_string("metric_set", None, "all, kitti_benchmark or millimetres."),
        flags.DEFINE_bool(
            "boundary", None, "Also score depth edges; needs dense, exact ground truth."
        ),
        flags.DEFINE_bool(
            "flip_tta", None, "Average with the mirrored image's depth; by default as published."
        ),
        flags.DEFINE_string("flip_average", None, "depth or inverse_depth: what is averaged."),
        flags.DEFINE_integer("batch_size", None, "Images predicted at once; 1 by default."),
        flags.DEFINE_integer(
            "num_inference_steps", None, "Denoising steps; by default the checkpoint's."
        ),
        flags.DEFINE_integer("num_samples", None, "Score the mean of N samples, and their spread."),
    ]


def _define_checks() -> None:
    flags.mark_flags_as_mutual_exclusive(["checkpoint", "predictions"], required=True)
    flags.mark_flags_as_mutual_exclusive(["config", "ground_truth"], required=True)
    cli.require_with("checkpoint", "config")
    cli.require_with("predictions", "workdir")
    cli.require_with("ground_truth", "predictions", "protocol")
    cli.require_with("ground_truth_png_scale", "ground_truth")
    for name in ("png_scale", *OF_PREDICTIONS):
        cli.require_with(name, "predictions")
    of_models = ("shard", "resize_input", "flip_tta", "flip_average", "batch_size")
    for name in (*of_models, "num_inference_steps", "num_samples", "network", "field"):
        cli.require_with(name, "checkpoint")


def _of_folders(options: dict[str, Any], compare: dict[str, Any]) -> dict[str, Any]:
    from diffdepth_jax.evaluation import protocols
    from diffdepth_jax.evaluation.run import predictions

    return predictions.score_predictions(
        FLAGS.predictions,
        FLAGS.ground_truth,
        protocols.get_all(options.pop("protocol"), **options),
        FLAGS.workdir,
        _png_scale(),
        FLAGS.ground_truth_png_scale,
        compare=compare,
    )


def _of_config(
    config: flags.FlagHolder, options: dict[str, Any], compare: dict[str, Any]
) -> dict[str, Any]:
    with ending.importing():  # only this form needs JAX
        from diffdepth_jax import inference
        from diffdepth_jax.evaluation.run import checkpoint, source_predictions
        from diffdepth_jax.evaluation.run.dataset import parse_shard
        from diffdepth_jax.training import experiment

    shown = {name: options.pop(name) for name in OF_PREDICTIONS if name in options}
    options |= {"compare": compare} if compare else {}
    # The config's model is not used, as the checkpoint has its own.
    exp = experiment.from_mapping(cli.mapping(config, options))
    if FLAGS.predictions is not None:
        return source_predictions.score_source_predictions(
            FLAGS.predictions,
            exp.data,
            [each.with_options(**shown) for each in exp.evaluation.build_all()],
            FLAGS.workdir,
            _png_scale(),
            compare=exp.evaluation.compare,
        )
    shard = None if FLAGS.shard is None else parse_shard(FLAGS.shard)
    workdir = FLAGS.workdir or checkpoint.run_directory(Path(FLAGS.checkpoint).expanduser())
    return checkpoint.score_checkpoint(
        inference.load(FLAGS.checkpoint, **cli.model_options()),
        exp.data,
        exp.evaluation,
        Path(workdir).expanduser(),
        shard=shard,
    )


def _png_scale() -> float:
    return 256.0 if FLAGS.png_scale is None else FLAGS.png_scale


if __name__ == "__main__":
    run()
