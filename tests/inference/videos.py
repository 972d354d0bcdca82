"""Small videos that the tests make themselves."""

import subprocess
from fractions import Fraction

import numpy as np

from diffdepth_jax.inference import ffmpeg

RATE = Fraction(30000, 1001)


def gradients(count, height=24, width=40):
    """Frames that differ, and that codecs do not blur much."""
    rows, columns = np.mgrid[:height, :width]
    return [
        np.stack([2 * rows + 9 * index, 3 * columns, np.full_like(rows, 90)], -1).astype(np.uint8)
        for index in range(count)
    ]


def make_video(path, frames, *options):
    """A lossless video, written by ffmpeg itself."""
    path.parent.mkdir(exist_ok=True)
    height, width = frames[0].shape[:2]
    command = [ffmpeg.executable(), "-v", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(RATE)]
    command += ["-i", "-", "-c:v", "libx264rgb", "-crf", "0", *options, str(path)]
    subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), check=True)
    return path
