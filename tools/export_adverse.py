"""Exports a workdir of generate_adverse.py in the layout of the data set Diffusion4RobustDepth.

    python tools/export_adverse.py --workdir=OUT --part=driving/kitti --output=DIR
    python tools/export_adverse.py --workdir=OUT --part=ToM --output=DIR

    DIR/driving/kitti/challenging/CONDITION/ID.png  the generated images
    DIR/driving/kitti/clean/ID.png                  the clean images, which that data set lacks
    DIR/driving/kitti/depth/ID.npy                  the labels, which it also lacks
    DIR/ToM/CONDITION/challenging/ID.png, DIR/ToM/CONDITION/easy/ID.png, DIR/ToM/depth/ID.npy

With several variants, each after the first becomes a separate condition (`night_1`). Rejected and
failed images are left out. The source `adverse` can read the result, with
`clean_root=DIR/driving/kitti/clean` and `depth_root=DIR/driving/kitti/depth` (for ToM, only
`depth_root`). Several workdirs can be exported to one DIR; existing files are kept, and a different
file with the same name is an error.
"""

import sys

from absl import flags

from diffdepth_jax import cli

FLAGS = flags.FLAGS
WORKDIR = cli.define_directory("workdir", "Workdir of a finished generate_adverse.py.")
OUTPUT = cli.define_directory("output", "Output folder.")
flags.DEFINE_string("part", None, "Part of the data set to export as.")
flags.mark_flags_as_required(["workdir", "output", "part"])


def main(_: list[str]) -> None:
    from diffdepth_jax.adverse import export

    counts = export.export(WORKDIR.value, OUTPUT.value, FLAGS.part)
    for condition, count in counts.items():
        print(f"{condition}: {count} images")
    if not counts:
        sys.exit("error: no image in the workdir has status ok, so there is nothing to export")


if __name__ == "__main__":
    cli.run(main, {"Flags": {"workdir": "DIR", "part": "driving/NAME|ToM", "output": "DIR"}})
