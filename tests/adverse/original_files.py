"""Tiny models with the original code's names, as in its single-file checkpoints. Needs torch."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch

Weights = dict[str, torch.Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_CONTROLNET = {
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
    "controlnet_mid_block": "middle_block_out.0",
}
_OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def read(folder: Path) -> Weights:
    (path,) = folder.glob("*.safetensors")
    return safetensors.torch.load_file(path)


def base(folder: Path, family: str) -> Weights:
    """A whole base model with one block per stage, in one state dict."""
    kinds = json.loads((folder / "unet" / "config.json").read_text())["up_block_types"]
    attention = [kind.startswith("CrossAttn") for kind in kinds]
    unet = {_unet_name(name, attention): each for name, each in read(folder / "unet").items()}
    vae = dict(_vae_entry(name, tensor) for name, tensor in read(folder / "vae").items())
    text = {
        "text_model." + name.removeprefix("text_model."): tensor
        for name, tensor in read(folder / "text_encoder").items()
    }
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # as in old files
    before = "conditioner.embedders.0" if family == "sdxl" else "cond_stage_model"
    weights = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()}
    weights |= {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}
    weights |= {f"{before}.transformer.{name}": tensor for name, tensor in text.items()}
    if family == "sdxl":
        second = _open_clip(read(folder / "text_encoder_2"))
        weights |= {f"conditioner.embedders.1.model.{name}": each for name, each in second.items()}
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def controlnet(folder: Path) -> Weights:
    return {f"control_model.{_unet_name(name)}": tensor for name, tensor in read(folder).items()}


def adapter(folder: Path) -> Weights:
    renamed = {}
    for name, tensor in read(folder).items():
        name = name.removeprefix("adapter.")
        name = re.sub(
            r"body\.(\d+)\.resnets\.(\d+)",
            lambda match: f"body.{2 * int(match[1]) + int(match[2])}",
            name,
        )
        name = re.sub(
            r"body\.(\d+)\.in_conv", lambda match: f"body.{2 * int(match[1])}.in_conv", name
        )
        renamed[name] = tensor
    return renamed


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for theirs, original in table.items():
        if re.match(re.escape(theirs) + r"(\.|$)", name):
            return original + name[len(theirs) :]
    return name


def _unet_name(name: str, attention: Sequence[bool] = ()) -> str:
    """For a network with one residual block per stage on the way down, and two on the way up.

    `attention` says which stages have attention on the way up; upsampling comes after it.
    """
    if match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.", name):
        stage = int(match[1])
        block = f"output_blocks.{2 * stage + 1}.{1 + attention[stage]}.conv."
        return block + name[match.end() :]
    if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.0\.", name):
        block = f"input_blocks.{1 + 2 * int(match[1])}.{match[2] == 'attentions':d}."
        return block + _replaced(name[match.end() :], _RESNET)
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.", name):
        return f"input_blocks.{2 + 2 * int(match[1])}.0.op." + name[match.end() :]
    if match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d)\.", name):
        index = 2 * int(match[1]) + int(match[3])
        block = f"output_blocks.{index}.{match[2] == 'attentions':d}."
        return block + _replaced(name[match.end() :], _RESNET)
    if match := re.match(r"controlnet_down_blocks\.(\d+)\.", name):
        return f"zero_convs.{match[1]}.0." + name[match.end() :]
    if match := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)\.", name):
        return f"input_hint_block.{2 + 2 * int(match[1])}." + name[match.end() :]
    renamed = _replaced(_replaced(name, _CONTROLNET), _UNET)
    if match := re.match(r"middle_block\.[02]\.", renamed):
        return match[0] + _replaced(renamed[match.end() :], _RESNET)
    return renamed


def _vae_entry(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", name)
    name = re.sub(
        r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name
    )
    name = re.sub(
        r"decoder\.up_blocks\.(\d)\.resnets\.(\d)",
        lambda match: f"decoder.up.{3 - int(match[1])}.block.{match[2]}",
        name,
    )
    name = re.sub(
        r"decoder\.up_blocks\.(\d)\.upsamplers\.0",
        lambda match: f"decoder.up.{3 - int(match[1])}.upsample",
        name,
    )
    for theirs, original in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"),
        ("to_out.0", "proj_out"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
    ):
        name = name.replace(theirs, original)
    if "attn_1" in name and tensor.ndim == 2:  # a 1x1 convolution
        tensor = tensor[:, :, None, None]
    return name, tensor


def _open_clip(weights: Weights) -> Weights:
    renamed: Weights = {"text_projection": weights["text_projection.weight"].T.contiguous()}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        if name == "text_projection.weight":
            continue
        if match := re.match(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            layer = _clip_name(f"{match[1]}.attn.in_proj_{match[3]}")
            parts.setdefault(layer, {})[match[2]] = tensor
        else:
            renamed[_clip_name(name)] = tensor
    for name, each in parts.items():
        renamed[name] = torch.cat([each["q"], each["k"], each["v"]])
    return renamed


def _clip_name(name: str) -> str:
    for theirs, original in _OPEN_CLIP.items():
        name = name.replace(theirs, original)
    return name
