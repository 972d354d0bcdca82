"""Inputs of distillation: pairs of images with labels, and teachers in published files."""

import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.inference.export import export
from diffdepth_jax.models.networks.network import expected_variables
from tests.models.networks.small_configs import SMALL

SIZE = (70, 84)


def write_pairs(root: Path, *, relative: bool, conditions=("night", "fog"), **rows) -> Path:
    """Writes a workdir of `generate_adverse.py`: three frames per condition, random labels.

    Args:
        root: the workdir.
        relative: whether the labels are disparity.
        conditions: the images' conditions.
        **rows: entries for all rows of the manifest.
    """
    rng = np.random.default_rng(0)
    lines = []
    for frame in "abc":
        names = {"clean": f"clean/{frame}.png", "label": f"labels/{frame}.npy"}
        label = rng.uniform(-0.1 if relative else 1.0, 9.0, SIZE).astype(np.float32)
        (root / "labels").mkdir(parents=True, exist_ok=True)
        np.save(root / names["label"], label)
        _save(root / names["clean"], rng)
        for condition in conditions:
            row = names | {"id": frame, "condition": condition, "variant": 0, "status": "ok"}
            row |= {"image": f"images/{condition}/{frame}_0.png", "intrinsics": None}
            row |= {"label_is": "relative_disparity" if relative else "metric_depth"}
            _save(root / row["image"], rng)
            lines.append(json.dumps(row | rows))
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return root


def write_folder(root: Path) -> Path:
    """Writes a folder of images and depth, with three frames each for training and validation."""
    rng = np.random.default_rng(1)
    for part in ("train", "val"):
        for frame in "abc":
            _save(root / part / "image" / f"{frame}.jpg", rng)
            path = root / part / "depth" / f"{frame}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            depth = rng.uniform(1.0, 9.0, SIZE) * rng.integers(0, 2, SIZE)
            np.save(path, depth.astype(np.float32))
    return root


def _save(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)


def teacher(name: str, **fields) -> DepthModel:
    """A small network with random weights, scaled to keep the size of features."""
    mapping = {"name": name, **SMALL[name], **fields}
    config = config_lib.chosen("network", mapping, resolve=registry.module, path="model")
    model = registry.module("network", name).build(config)
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2
        array = scale * rng.standard_normal(leaf.shape)
        if path[-1].key in ("scale", "var"):
            array = 1 + np.abs(array)
        return array.astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, expected_variables(model))
    return DepthModel(model, variables, config)


def write_teacher(path: Path, name: str, **fields) -> dict:
    """Writes a teacher under its published names; returns its config as a mapping."""
    model = teacher(name, **fields)
    export(model, path)
    return config_lib.to_mapping(model.config)
