"""Writes a submission to the KITTI depth prediction benchmark: a zip of 500 depth maps.

    python tools/kitti_submission.py --checkpoint=runs/kitti --root=KITTI --output=kitti.zip
    python tools/kitti_submission.py --predictions=DIR --root=KITTI --output=kitti.zip

KITTI is the folder that data_depth_selection.zip was unpacked to. The second form uses saved depth
maps, 0000000000 to 0000000499, as 16-bit PNG or `.npy` in metres, as written by `predict.py`.
"""

import dataclasses
from pathlib import PurePath

from absl import flags

from diffdepth_jax import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run, a published .pt, or a .safetensors file.")
flags.DEFINE_string("predictions", None, "Saved depth maps of any model, instead of --checkpoint.")
flags.DEFINE_float("png_scale", 256.0, "Their value per metre, if they are PNG.")
cli.define_directory("root", "The folder that holds depth_selection.")
flags.DEFINE_string("output", None, "The .zip to write.")
flags.DEFINE_bool("flip_tta", False, "Average with the mirrored image's depth.")
flags.DEFINE_integer("num_inference_steps", None, "Denoising steps; by default the checkpoint's.")
flags.mark_flags_as_required(["root", "output"])
flags.register_validator("output", bool, "is empty: set it to the .zip to write")
flags.mark_flags_as_mutual_exclusive(["checkpoint", "predictions"], required=True)
cli.require_with("num_inference_steps", "checkpoint")


def main(_: list[str]) -> None:
    import numpy as np
    from tqdm import tqdm

    from diffdepth_jax.data import io
    from diffdepth_jax.data.sources import kitti
    from diffdepth_jax.errors import ConfigError
    from diffdepth_jax.evaluation.report import submission
    from diffdepth_jax.evaluation.run import files, predictions

    output = cli.output_file("--output", FLAGS.output)
    samples = kitti.source("test_anonymous", FLAGS.root)
    submission.check_names((frame.id for frame in samples.frames), FLAGS.root)
    if FLAGS.predictions is not None:
        predictions.check_scale("png_scale", FLAGS.png_scale)
        found = dataclasses.replace(files.find(FLAGS.predictions), unusable={})
        stems = {PurePath(name).name for name in found.paths}
        named = stems.intersection(submission.NAMES)  # the folder also has images
        submission.check_names(named, FLAGS.predictions)
        names = files.match([[name] for name in submission.NAMES], found)
        saved = dict(zip(submission.NAMES, map(found.paths.get, names), strict=True))

        def depth_of(sample):
            return io.read_depth_array(saved[sample["id"]], FLAGS.png_scale, np.float64)

    else:
        import diffdepth_jax

        model = diffdepth_jax.load(FLAGS.checkpoint)
        if model.output != "metric_depth":
            raise ConfigError(
                f"{FLAGS.checkpoint} predicts relative disparity, but the benchmark needs metres: "
                "use a metric model"
            )

        def depth_of(sample):
            return model.predict(
                sample["image"],
                flip_tta=FLAGS.flip_tta,
                num_inference_steps=FLAGS.num_inference_steps,
            )

    submission.write(output, tqdm(samples, unit=" images"), depth_of)
    submission.check(output)
    print(f"{output}: {len(submission.NAMES)} depth maps, names and sizes checked")


if __name__ == "__main__":
    cli.run(
        main,
        {
            "Flags": {
                "checkpoint": "PATH",
                "flip_tta": "",
                "num_inference_steps": "N",
                "predictions": "DIR|GLOB",
                "png_scale": "NUMBER",
                "root": "DIR",
                "output": "FILE",
            }
        },
    )
