"""Metrics of a checkpoint or of any model's saved depth maps: `metrics.json`, `per_image.csv`.

    python evaluate.py --config=configs/kitti.py --checkpoint=runs/kitti [--workdir=OUT]
    python evaluate.py --protocol=kitti_eigen --predictions=DIR --ground_truth=DIR --workdir=OUT

Saved depth maps match by stem, 16-bit PNG or `.npy` in metres, such as `predict.py` writes.
"""

from absl import flags

from diffdepth_jax import cli

CONFIG = cli.define_config(required=False)
FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run directory, an official .pt, or a .safetensors.")
flags.DEFINE_string("predictions", None, "Folder or pattern of saved depth maps.")
flags.DEFINE_string("ground_truth", None, "Folder or pattern of measured depth maps.")
flags.DEFINE_float("png_scale", None, "PNG value per metre; 256 if absent.")
flags.DEFINE_float("ground_truth_png_scale", None, "The ground truth's where it differs.")
flags.DEFINE_string("workdir", None, "Where the results go; the run directory if absent.")
OPTIONS = [
    flags.DEFINE_string("protocol", None, "kitti_eigen, kitti_official, nyu, nyu_release, ..."),
    flags.DEFINE_string("crop", None, "none, garg or eigen."),
    flags.DEFINE_string("crop_reference", None, "kb or full: the frame that is scored."),
    flags.DEFINE_float("min_depth", None, "Metres."),
    flags.DEFINE_float("max_depth", None, "Metres; inf for no cap."),
    flags.DEFINE_string("alignment", None, "none, median, lsq_depth or lsq_disparity."),
    flags.DEFINE_float("disparity_floor", None, "1/metres, for lsq_disparity."),
    flags.DEFINE_string("prediction_frame", None, "full or kb: what predictions show."),
    flags.DEFINE_string("resize_prediction", None, "none or bilinear."),
    flags.DEFINE_bool("flip_tta", None, "Average with the prediction of the mirrored image."),
    flags.DEFINE_integer("num_inference_steps", None, "Denoising steps; else the checkpoint's."),
]
flags.mark_flags_as_mutual_exclusive(["config", "predictions"], required=True)
cli.require_with("config", "checkpoint")
cli.require_with("predictions", "ground_truth", "protocol", "workdir")
for name in ("ground_truth", "png_scale", "ground_truth_png_scale"):
    cli.require_with(name, "predictions")
for name in ("prediction_frame", "resize_prediction"):  # a model's show what it was fed
    cli.require_with(name, "predictions")
for name in ("checkpoint", "flip_tta", "num_inference_steps"):
    cli.require_with(name, "config")


def main(_: list[str]) -> None:
    from diffdepth_jax.evaluation import predictions, protocols, report

    options = {flag.name: flag.value for flag in OPTIONS if flag.value is not None}
    if FLAGS.predictions is not None:
        protocol = protocols.get(options.pop("protocol"), **options)
        folders = FLAGS.predictions, FLAGS.ground_truth
        scale = 256.0 if FLAGS.png_scale is None else FLAGS.png_scale
        result = predictions.score_predictions(
            *folders, protocol, FLAGS.workdir, scale, FLAGS.ground_truth_png_scale
        )
    else:  # Only this form needs JAX.
        from diffdepth_jax.training import evaluation

        config = cli.mapping(CONFIG, options)
        result = evaluation.evaluate_checkpoint(config, FLAGS.checkpoint, FLAGS.workdir)
    print(report.table(result))


if __name__ == "__main__":
    cli.run(main)
