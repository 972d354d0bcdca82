r"""Computes a checkpoint's decoder batch statistics for other numbers of denoising steps.

    python tools/recalibrate.py --checkpoint=runs/kitti --steps=5 --steps=10 --input=DIR|GLOB
    python tools/recalibrate.py --checkpoint=official.pt --steps=10 --input=DIR \
        --output=kitti.safetensors

A model is trained with one number of steps; with another, its decoder's running statistics are
wrong (`diffdepth_jax/inference/recalibration.py` explains why). About 30 images like those used in
training are enough to recompute them; no depth is needed. If training used crops, set their size
with --crop, as statistics depend on it too. A checkpoint can have statistics for several numbers of
steps; `--num_inference_steps` of predict.py and evaluate.py selects the right ones.
results/recalibration.csv shows what to expect.

For a run, they are stored next to the weights, in `checkpoints/<step>/recalibrated.json`, unless
--output is set. For a single file, --output is required: a `.safetensors` with the names of the
published PyTorch code, and the statistics in its metadata, which PyTorch ignores.
"""

from pathlib import Path

import numpy as np
from absl import flags

from diffdepth_jax import cli
from diffdepth_jax.errors import ConfigError

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run, a published .pt, or a .safetensors file.")
flags.DEFINE_multi_integer("steps", None, "Number of denoising steps.")
flags.DEFINE_string("input", None, "A directory of images, or a glob pattern.")
flags.DEFINE_integer(
    "num_images", 32, "Maximum number of images to use, spread evenly.", lower_bound=1
)
cli.define_size("crop", "Size of a centre crop of each image; by default the whole image.")
flags.DEFINE_integer("seed", 0, "Seed of the noise.")
flags.DEFINE_string("output", None, "A .safetensors file; by default the run's directory.")
flags.mark_flags_as_required(["checkpoint", "steps", "input"])


def middle(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The centre of an image [h, w, 3], at most of this size."""
    top, left = (max(side - part, 0) // 2 for side, part in zip(image.shape[:2], size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def main(_: list[str]) -> None:
    from diffdepth_jax.weights import orbax

    checkpoint = Path(FLAGS.checkpoint).expanduser()
    if checkpoint.is_dir():  # one step of the run, even if training continues meanwhile
        checkpoint = orbax.checkpoint_directory(checkpoint)
    elif FLAGS.output is None and checkpoint.exists():
        raise ConfigError(f"{checkpoint} is a single file: set --output to a new file")

    from diffdepth_jax import inference
    from diffdepth_jax.inference import files
    from diffdepth_jax.inference.export import check_target
    from diffdepth_jax.inference.preprocessing import read_image

    if FLAGS.output is not None:
        check_target(cli.output_file("--output", FLAGS.output), checkpoint)
    model = inference.load(checkpoint)
    paths = files.find_images(FLAGS.input)
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), FLAGS.num_images)).round().astype(int)
    images = [read_image(paths[index]) for index in chosen]
    if FLAGS.crop is not None:
        images = [middle(image, cli.size(FLAGS.crop)) for image in images]
    for steps in FLAGS.steps:
        model = model.recalibrate(images, steps, seed=FLAGS.seed, progress=True)
    if FLAGS.output is None:
        inference.save_recalibrated(model, checkpoint)
    else:
        for line in inference.export(model, FLAGS.output):
            print(f"not stored in the file: {line}")


if __name__ == "__main__":
    cli.run(
        main,
        {
            "Flags": {
                "checkpoint": "PATH",
                "steps": "N",
                "input": "DIR|GLOB",
                "num_images": "N",
                "crop": "HEIGHTxWIDTH",
                "seed": "N",
                "output": "FILE",
            }
        },
    )
