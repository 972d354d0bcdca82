"""A workdir of generate_adverse.py in the layout of the data set Diffusion4RobustDepth.

    python tools/export_adverse.py --workdir=OUT --part=driving/kitti --output=DIR
    python tools/export_adverse.py --workdir=OUT --part=ToM --output=DIR

    DIR/driving/kitti/challenging/CONDITION/ID.png  the generated images
    DIR/driving/kitti/clean/ID.png                  the clean ones, which that data set lacks
    DIR/driving/kitti/depth/ID.npy                  the labels, which it lacks too
    DIR/ToM/CONDITION/challenging/ID.png, DIR/ToM/CONDITION/easy/ID.png, DIR/ToM/depth/ID.npy

With several variants, a variant is a condition of its own (`night_1`) beyond the first. Images that
are rejected or failed are left out. The source `adverse` reads the result too, with
`clean_root=DIR/driving/kitti/clean` and `depth_root=DIR/driving/kitti/depth` (of ToM, `depth_root`
alone). Several workdirs may go into one DIR; what is there already is kept, and a file of the same
name that differs is refused.
"""

import sys

from absl import flags

from diffdepth_jax import cli

FLAGS = flags.FLAGS
WORKDIR = cli.define_directory("workdir", "Of a finished generate_adverse.py.")
OUTPUT = cli.define_directory("output", "Where the layout goes.")
flags.DEFINE_string("part", None, "Part of the data set that the images become.")
flags.mark_flags_as_required(["workdir", "output", "part"])


def main(_: list[str]) -> None:
    from diffdepth_jax.adverse import export

    counts = export.export(WORKDIR.value, OUTPUT.value, FLAGS.part)
    for condition, count in counts.items():
        print(f"{condition}: {count} images")
    if not counts:
        sys.exit("error: no image of the workdir is ok, so there is nothing to export")


if __name__ == "__main__":
    cli.run(main, {"Flags": {"workdir": "DIR", "part": "driving/NAME|ToM", "output": "DIR"}})
