"""Makes the files of this folder of whole recordings: python tests/golden/shrink.py FULL.npz ...

Inputs and the predicted depth stay whole. Of the other maps every `stride`-th number is kept, in
the order in which they were recorded (NCHW), some 8,000 of them from all channels, rows and
columns; `meta` says the strides. Maps that no test compares are left out.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np

WHOLE = ("image", "depth_gt", "x_T", "t_first", "trajectory_rms", "depth_pred")
SAMPLED = (
    "cond",
    "eps_first",
    "x_after_step1",
    "x_0",
    "gt_latent",
    *(f"feat{i}" for i in range(4)),
)
# Of a training step.
TRAINING = ("image", "depth_gt", "x_T", "ddim_noise", "ddim_timesteps", "grad_norms", "bn_after")
TRAINING += ("ddim_loss", "l1_loss", "l2_loss", "total_loss")
KEPT = 8000


def stride(size: int) -> int:
    """About size / KEPT, and of no factor in common with it, so that no column is passed over."""
    return next(step for step in itertools.count(max(size // KEPT, 1)) if math.gcd(step, size) == 1)


def shrink(path: Path) -> None:
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        arrays = {name: file[name] for name in (TRAINING if meta["train"] else WHOLE)}
        sampled = {name: file[name].ravel() for name in SAMPLED if not meta["train"]}
    meta["strides"] = {name: stride(array.size) for name, array in sampled.items()}
    arrays |= {name: array[:: meta["strides"][name]] for name, array in sampled.items()}
    np.savez_compressed(Path(__file__).with_name(path.name), meta=json.dumps(meta), **arrays)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        shrink(Path(name))
