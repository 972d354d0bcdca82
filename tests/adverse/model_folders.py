"""Folders that look like diffusion models, and an interpreter that runs the stand-in worker.

Without torch: their weights are single numbers under the right names.
"""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy

STANDIN = Path(__file__).with_name("standin_worker.py")
_UNET = {
    "sd": {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "in_channels": 4,
    },
    "sdxl": {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "in_channels": 4,
        "addition_embed_type": "text_time",
    },
}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_weights(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = arrays or {"weight": np.ones(1, np.float32)}
    safetensors.numpy.save_file(arrays, path)


def write_base(folder: Path, family: str = "sd", *, weights: bool = True) -> Path:
    """A base model's folder; without `weights`, as used with a single file."""
    second = ("_2",) * (family == "sdxl")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "X"]}
    write_json(folder / "model_index.json", index)
    write_json(folder / "unet" / "config.json", _UNET[family])
    write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKL"})
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler"})
    for ending in ("", *second):
        write_json(folder / f"text_encoder{ending}" / "config.json", {"vocab_size": 10})
        write_json(folder / f"tokenizer{ending}" / "vocab.json", {})
        if weights:
            write_weights(folder / f"text_encoder{ending}" / "model.safetensors")
    if weights:
        for part in ("unet", "vae"):
            write_weights(folder / part / "diffusion_pytorch_model.safetensors")
    return folder


def write_adapter(folder: Path, family: str = "sd", **changes: object) -> Path:
    config = {
        "_class_name": "T2IAdapter",
        "adapter_type": "full_adapter" if family == "sd" else "full_adapter_xl",
        "channels": [320, 640, 1280, 1280],
        "downscale_factor": 8 if family == "sd" else 16,
        "in_channels": 3,
    }
    write_json(folder / "config.json", config | changes)
    write_weights(folder / "diffusion_pytorch_model.safetensors")
    return folder


def write_controlnet(folder: Path, family: str = "sd", **changes: object) -> Path:
    config = _UNET[family] | {"_class_name": "ControlNetModel", "conditioning_channels": 3}
    write_json(folder / "config.json", config | changes)
    write_weights(folder / "diffusion_pytorch_model.safetensors")
    return folder


def write_interpreter(path: Path, **behaviour: object) -> Path:
    """A program that runs the stand-in worker instead of the script that it is given."""
    path.write_text(
        f"#!/bin/sh\nSTANDIN={shlex.quote(json.dumps(behaviour))} "
        f"exec {shlex.quote(sys.executable)} {shlex.quote(str(STANDIN))}\n"
    )
    path.chmod(0o755)
    return path
