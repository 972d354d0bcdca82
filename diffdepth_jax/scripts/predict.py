"""Depth of images by any checkpoint.

    python predict.py --checkpoint=runs/demo --input=IMAGE|DIR|GLOB --output=DIR

Says first whether the model predicts metres or relative disparity, and writes, for each image,
`STEM.npy` (float32), `STEM.png` (16 bits: metres x 256, as KITTI does, or relative disparity from 0
to 65535, larger is nearer, as MiDaS does) and `STEM_colour.png`. With --num_samples=N, for networks
that draw noise, these are of the mean of N samples, and `STEM_spread.npy` and `STEM_spread.png`
show their standard deviation: where the model is unsure. What a file of weights does not tell, as
whether Depth Anything is of version 1 or 2, can be said by --network and --field. An unreadable
image is reported and skipped; the exit status is then 1. After an interruption the same command
with --skip_existing does the other images.
"""

import sys

from absl import flags

from diffdepth_jax import cli


def run() -> None:
    """Reads the command line and predicts."""
    values = flags.FLAGS
    cli.define_checkpoint()
    flags.DEFINE_string("input", None, "An image, a directory of images, or a glob pattern.")
    output = cli.define_directory("output", "Where the depth maps go.")
    flags.DEFINE_integer(
        "num_inference_steps", None, "Denoising steps; the checkpoint's if absent."
    )
    flags.DEFINE_integer("seed", 0, "Of the initial noise.")
    flags.DEFINE_integer(
        "num_samples", None, "Draw this many samples: their mean and their spread."
    )
    flags.DEFINE_integer("batch_size", 1, "Images of equal size that are predicted at once.")
    flags.DEFINE_bool("skip_existing", False, "Leave out images whose results are there.")
    flags.DEFINE_bool(
        "flip_tta", None, "Average with the mirrored image's; if absent, as published."
    )
    flags.mark_flags_as_required(["checkpoint", "input", "output"])

    def main(_: list[str]) -> None:
        with cli.importing():
            from diffdepth_jax import inference
            from diffdepth_jax.inference import files

        paths = files.find_images(values.input)
        model = inference.load(values.checkpoint, **cli.model_options())
        print(f"{values.checkpoint} predicts {files.WHAT[model.output]}", flush=True)
        failures = files.predict_files(
            model,
            paths,
            output.value,
            batch_size=values.batch_size,
            skip_existing=values.skip_existing,
            num_inference_steps=values.num_inference_steps,
            seed=values.seed,
            num_samples=values.num_samples,
            flip_tta=values.flip_tta,
        )
        if failures:
            sys.exit(f"error: {len(failures)} of {len(paths)} images were skipped")

    cli.run(main)


if __name__ == "__main__":
    run()
