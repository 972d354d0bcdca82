"""Makes the files in this folder from full recordings: python tests/golden/shrink.py FULL.npz ...

Inputs and the predicted depth are kept whole. Of the other maps every `stride`-th value is kept, in
recorded order (NCHW): some 8,000 values from all channels, rows and columns. `meta` lists the
strides. Maps that no test compares are left out.

Recordings of other networks go to the folder `networks`. They are already reduced: kept are the
image, the prediction, and the maps that show where a difference begins.
"""

import itertools
import json
import math
import re
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
# What is kept of a training step.
TRAINING = ("image", "depth_gt", "x_T", "ddim_noise", "ddim_timesteps", "grad_norms", "bn_after")
TRAINING += ("ddim_loss", "l1_loss", "l2_loss", "total_loss")
KEPT = 8000
# What is kept of another network, besides the prediction.
OF_NETWORKS = r"image|infer|disp\d?|tap\d|post\d|path\d|centers\d|pt|domain_logits"
NOTES = ("name", "model", "source", "checkpoint", "config", "shapes", "scale", "constants")
NOTES += ("min_depth", "max_depth", "versions")


def stride(size: int) -> int:
    """About size / KEPT, and coprime to size, so that no column is left out."""
    return next(step for step in itertools.count(max(size // KEPT, 1)) if math.gcd(step, size) == 1)


def shrink_network(path: Path) -> None:
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        prediction = file["depth" if "depth" in file.files else "prediction"]
        arrays = {name: file[name] for name in file.files if re.fullmatch(OF_NETWORKS, name)}
    arrays["prediction"] = prediction.reshape(len(prediction), 1, *prediction.shape[-2:])
    meta = {name: meta[name] for name in NOTES if name in meta}
    folder = Path(__file__).with_name("networks")
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / path.name, meta=json.dumps(meta), **arrays)


def shrink(path: Path) -> None:
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        if "train" not in meta:
            return shrink_network(path)
        arrays = {name: file[name] for name in (TRAINING if meta["train"] else WHOLE)}
        sampled = {name: file[name].ravel() for name in SAMPLED if not meta["train"]}
    meta["strides"] = {name: stride(array.size) for name, array in sampled.items()}
    arrays |= {name: array[:: meta["strides"][name]] for name, array in sampled.items()}
    np.savez_compressed(Path(__file__).with_name(path.name), meta=json.dumps(meta), **arrays)
    return None


if __name__ == "__main__":
    for name in sys.argv[1:]:
        shrink(Path(name))
