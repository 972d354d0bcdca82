"""Maps names to the files that implement them; a file is only imported when it is needed.

To add a network, encoder, data source, objective or backend, write its file and add a line here.
"""

import importlib
import re
from collections.abc import Iterable
from types import ModuleType

from diffdepth_jax.errors import ConfigError, did_you_mean

MODULES: dict[str, dict[str, str]] = {
    "network": {
        "diffusion_depth": "diffdepth_jax.models.networks.diffusion_depth",
        "regression": "diffdepth_jax.models.networks.regression",
        "depth_anything": "diffdepth_jax.models.networks.depth_anything",
        "dpt": "diffdepth_jax.models.networks.dpt",
        "midas": "diffdepth_jax.models.networks.midas",
        "zoedepth": "diffdepth_jax.models.networks.zoedepth",
        "monodepth2": "diffdepth_jax.models.networks.monodepth2",
    },
    "encoder": {
        "resnet": "diffdepth_jax.models.encoders.resnet",
        "swin": "diffdepth_jax.models.encoders.swin",
        "mpvit": "diffdepth_jax.models.encoders.mpvit",
        "torchvision_resnet": "diffdepth_jax.models.encoders.torchvision_resnet",
        "dinov2": "diffdepth_jax.models.encoders.dinov2",
        "vit": "diffdepth_jax.models.encoders.vit",
        "hybrid_vit": "diffdepth_jax.models.encoders.hybrid_vit",
        "beit": "diffdepth_jax.models.encoders.beit",
        "swin2": "diffdepth_jax.models.encoders.swin2",
        "efficientnet_lite": "diffdepth_jax.models.encoders.efficientnet_lite",
    },
    "source": {
        "kitti": "diffdepth_jax.data.sources.kitti",
        "kitti_object": "diffdepth_jax.data.sources.kitti_object",
        "kitti_stereo": "diffdepth_jax.data.sources.kitti_stereo",
        "nuscenes": "diffdepth_jax.data.sources.nuscenes",
        "nyu": "diffdepth_jax.data.sources.nyu",
        "booster": "diffdepth_jax.data.sources.booster",
        "cleargrasp": "diffdepth_jax.data.sources.cleargrasp",
        "folder": "diffdepth_jax.data.sources.folder",
        "adverse": "diffdepth_jax.data.sources.adverse",
        "apolloscape": "diffdepth_jax.data.sources.apolloscape",
        "cityscapes": "diffdepth_jax.data.sources.cityscapes",
        "drivingstereo": "diffdepth_jax.data.sources.drivingstereo",
        "mapillary": "diffdepth_jax.data.sources.mapillary",
        "robotcar": "diffdepth_jax.data.sources.robotcar",
        "tfds": "diffdepth_jax.data.sources.tfds",
        "mixture": "diffdepth_jax.data.sources.mixture",
    },
    "objective": {
        "self_diffusion": "diffdepth_jax.training.objectives.self_diffusion",
        "ground_truth_diffusion": "diffdepth_jax.training.objectives.ground_truth_diffusion",
        "consistency_distillation": ("diffdepth_jax.training.objectives.consistency_distillation"),
        "pixel": "diffdepth_jax.training.objectives.pixel",
        "metric": "diffdepth_jax.training.objectives.metric",
        "ssi": "diffdepth_jax.training.objectives.ssi",
        "md4all": "diffdepth_jax.training.objectives.md4all",
    },
    "backend": {
        "diffusers": "diffdepth_jax.adverse.backends.diffusers",
        "physical": "diffdepth_jax.adverse.backends.physical",
        "files": "diffdepth_jax.adverse.backends.files",
    },
}

# Patterns of state dict keys that must all occur in the weights of a network, or of an encoder with
# the names used by networks. They are cheap, and enough to distinguish the families; `infer` does
# the rest.
SIGNATURES: dict[str, dict[str, tuple[str, ...]]] = {
    "network": {
        "diffusion_depth": (r"depth_backbone\..+", r"depth_head\.model\.time_embedding\.weight"),
        "depth_anything": (
            r"pretrained\.blocks\.0\.ls1\.gamma|backbone\.encoder\.layer\.0\.layer_scale1\.lambda1",
            r"depth_head\.scratch\.output_conv1\.weight|head\.conv1\.weight",
        ),
        "dpt": (
            r"pretrained\.model\..+|neck\.fusion_stage\..+",
            r"scratch\.output_conv\.4\.weight|head\.head\.4\.weight",
        ),
        "midas": (r"pretrained\.layer1\.0\.weight", r"scratch\.layer1_rn\.weight"),
        "monodepth2": (
            r"(depth_model\.)?(encoder\.)?encoder\.conv1\.weight",
            r"(depth_model\.)?(decoder\.)?decoder\.0\.conv\.conv\.weight",
        ),
        "zoedepth": (
            r"core\.core\..+|metric_head\..+",
            r"(metric_head\.)?projectors\.\d+\.(_net\.0|conv1)\.(weight|bias)",
        ),
    },
    "encoder": {
        "resnet": (r"layers\.0\.0\.downsample\.weight",),
        "swin": (r"stages\.0\.blocks\.0\.attn\.w_msa\.relative_position_bias_table",),
        "swin2": (r"layers\.0\.blocks\.0\.attn\.cpb_mlp\.0\.weight",),
        "mpvit": (r"patch_embed_stages\.0\.patch_embeds\.0\.patch_conv\.dwconv\.weight",),
        "torchvision_resnet": (r"conv1\.weight", r"layer1\.0\.conv1\.weight"),
        "dinov2": (r"blocks\.0\.ls1\.gamma", r"patch_embed\.proj\.weight"),
        "beit": (r"blocks\.0\.gamma_1", r"blocks\.0\.attn\.relative_position_bias_table"),
        "hybrid_vit": (r"pos_embed", r"patch_embed\.backbone\.stem\.conv\.weight"),
        "vit": (r"pos_embed", r"blocks\.0\.attn\.qkv\.bias"),
        "efficientnet_lite": (r"conv_stem\.weight", r"blocks\.1\.0\.conv_pwl\.weight"),
    },
}

# Patterns that must not occur, for families whose names are a subset of another's.
ABSENT: dict[str, dict[str, tuple[str, ...]]] = {
    "network": {},
    "encoder": {
        # In DINOv2 and BEiT, and in the hybrid.
        "vit": (r"blocks\.0\.(ls1\.gamma|gamma_1)", r"patch_embed\.backbone\..+"),
    },
}


def names(kind: str) -> tuple[str, ...]:
    """The registered names of a kind ("network", "encoder", "source", "objective", "backend")."""
    return tuple(MODULES[kind])


def module(kind: str, name: str) -> ModuleType:
    """Imports and returns the file registered under `name`.

    Raises:
        ConfigError: if the name is unknown; lists the known ones.
    """
    table = MODULES[kind]
    if name not in table:
        raise ConfigError(f"no {kind} named {name!r}{did_you_mean(name, table)}")
    return importlib.import_module(table[name])


def matching(kind: str, keys: Iterable[str]) -> tuple[str, ...]:
    """Names of a kind ("network", "encoder") whose signature matches a state dict's keys."""
    keys = tuple(keys)

    def occurs(pattern: str) -> bool:
        return any(re.fullmatch(pattern, key) for key in keys)

    return tuple(
        name
        for name, patterns in SIGNATURES[kind].items()
        if all(map(occurs, patterns)) and not any(map(occurs, ABSENT[kind].get(name, ())))
    )
