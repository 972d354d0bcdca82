"""Depth Anything V1 and V2 (Yang et al. 2024, arXiv:2401.10891 and arXiv:2406.09414).

DINOv2 with DPT's head. The versions differ in which blocks feed the head (V1 uses the last ones)
and in how results are resized to the image. V2 also has metric models, whose last activation is a
sigmoid times the maximum depth. V1's metric models are ZoeDepth with this network as the core
(`zoedepth`).

Weights determine none of this: `version` and `max_depth` come from the published file's name or the
caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.models.encoders import dinov2
from diffdepth_jax.models.networks import dpt_head
from diffdepth_jax.models.networks.dpt_head import Decoded, DPTHead, DPTHeadConfig
from diffdepth_jax.models.networks.network import (
    HasEncoder,
    NetworkConfig,
    Output,
    Published,
    TransformersLayout,
    Variants,
)
from diffdepth_jax.models.networks.transformers_json import Described, dpt_preprocessor
from diffdepth_jax.models.tables import below, width
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights.rules import Rules, prefix

OUTPUT = "relative_disparity"
INPUT = InputSpec(
    size=(518, 518),
    keep_aspect=True,
    bound="lower",
    multiple=14,
    interpolation="bicubic",
    output_interpolation="bilinear",
    output_align_corners=True,
)
_FORM = r"(_fp(16|32))?"  # precision, in the names of converted copies
FILES: Mapping[str, Mapping[str, Any]] = {
    rf"depth_anything_vit[sbl]14{_FORM}": {"version": 1},
    rf"depth_anything_v2_vit[sblg]{_FORM}": {"version": 2},
    rf"depth_anything_v2_metric_hypersim_vit[sblg]{_FORM}": {"version": 2, "max_depth": 20.0},
    rf"depth_anything_v2_metric_vkitti_vit[sblg]{_FORM}": {"version": 2, "max_depth": 80.0},
}
UNDETERMINED: Mapping[str, tuple[Any, ...]] = {"version": (1, 2)}


@dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig, HasEncoder, Published):
    """A Depth Anything network.

    Attributes:
        encoder: a `dinov2`; its `taps` and `position_offset` are overridden by `version` and
            `implementation`.
        max_depth: maximum depth of a metric V2 model in metres; None for a relative model.
        version: 1 or 2.
        implementation: the authors' or that of transformers, which resizes position embeddings,
            images and results differently.
        project_features: channels of the reassembled maps, fine to coarse.
        fused_features: channels of the fused maps.
        output_features: hidden channels of the head's last two convolutions.
    """

    name: Literal["depth_anything"] = "depth_anything"
    encoder: Any = field(
        default_factory=lambda: dinov2.VARIANTS["small"], metadata={"kind": "encoder"}
    )
    version: Literal[1, 2] = 2
    implementation: Literal["authors", "transformers"] = "authors"
    project_features: tuple[int, int, int, int] = (48, 96, 192, 384)
    fused_features: int = 64
    output_features: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.encoder, dinov2.Config):
            raise ValueError(f"encoder is {self.encoder.name!r}; it must be 'dinov2'")
        if self.version == 1 and self.max_depth is not None:
            raise ValueError(
                f"max_depth is {self.max_depth}, but Depth Anything V1 is relative: use the "
                "network 'zoedepth' for V1's metric models, or version=2 for V2's"
            )
        if min(*self.project_features, self.fused_features // 2, self.output_features) < 1:
            raise ValueError(
                f"project_features {self.project_features} and output_features "
                f"{self.output_features} must be positive, and fused_features "
                f"{self.fused_features} at least 2"
            )
        if self.encoder.depth < 4:
            raise ValueError(f"encoder.depth is {self.encoder.depth}; the head needs four maps")
        taps = dinov2.last_taps if self.version == 1 else dinov2.spread_taps
        authors = self.implementation == "authors"
        encoder = replace(
            self.encoder,
            taps=taps(self.encoder.depth),
            position_offset=dinov2.META_OFFSET if authors else dinov2.TRANSFORMERS_OFFSET,
        )
        object.__setattr__(self, "encoder", encoder)

    @property
    def head(self) -> DPTHeadConfig:
        """The head's config."""
        return DPTHeadConfig(
            project_features=self.project_features,
            level_features=(self.fused_features,) * 4,
            output_features=self.output_features,
            activation="relu" if self.max_depth is None else "sigmoid",
        )

    @property
    def output(self) -> Output:
        return "relative_disparity" if self.max_depth is None else "metric_depth"

    @property
    def input_spec(self) -> InputSpec:
        spec = replace(INPUT, multiple=self.encoder.patch_size)
        if self.implementation == "transformers":
            return replace(
                spec,
                bound="minimal",
                interpolation="pillow",
                output_interpolation="bicubic",
                output_align_corners=False,
            )
        return replace(spec, output_align_corners=self.version == 2)


def _variant(encoder: str, version: Literal[1, 2], max_depth: float | None = None) -> Config:
    heads = {
        "small": ((48, 96, 192, 384), 64),
        "base": ((96, 192, 384, 768), 128),
        "large": ((256, 512, 1024, 1024), 256),
        "giant": ((1536, 1536, 1536, 1536), 384),
    }
    project_features, fused_features = heads[encoder]
    return Config(
        encoder=dinov2.VARIANTS[encoder],
        version=version,
        max_depth=max_depth,
        project_features=project_features,
        fused_features=fused_features,
    )


VARIANTS = Variants(
    {
        "v1_small": lambda: _variant("small", 1),
        "v1_base": lambda: _variant("base", 1),
        "v1_large": lambda: _variant("large", 1),
        "v2_small": lambda: _variant("small", 2),
        "v2_base": lambda: _variant("base", 2),
        "v2_large": lambda: _variant("large", 2),
        "v2_giant": lambda: _variant("giant", 2),
        "v2_small_indoor": lambda: _variant("small", 2, 20.0),
        "v2_base_indoor": lambda: _variant("base", 2, 20.0),
        "v2_large_indoor": lambda: _variant("large", 2, 20.0),
        "v2_small_outdoor": lambda: _variant("small", 2, 80.0),
        "v2_base_outdoor": lambda: _variant("base", 2, 80.0),
        "v2_large_outdoor": lambda: _variant("large", 2, 80.0),
    }
)


class DepthAnything(nn.Module):
    """The network. Images are normalised by `INPUT`, with sides that are multiples of the patch.

    Attributes: config: the network's config.
        dtype: type used by convolutions and matrix products; parameters, normalisation statistics
        and the result are float32. frozen: parts ("encoder", "head") that are not trained: during
        training too, they run as in inference, without drop path.
    """

    config: Config
    dtype: Any = jnp.float32
    frozen: tuple[str, ...] = ()

    def setup(self) -> None:
        self.encoder = dinov2.Encoder(self.config.encoder, dtype=self.dtype)
        self.head = DPTHead(self.config.head, dtype=self.dtype)

    def __call__(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Normalised image to relative disparity, or to depth in metres, of the same size.

        Raises:
            ValueError: for an image whose sides are not multiples of the patch.
        """
        output = self.decode(image, train).output
        return output if self.config.max_depth is None else output * self.config.max_depth

    def decode(self, image: Float[Array, "b h w 3"], train: bool = False) -> Decoded:
        """The head's result before scaling by `max_depth`, and intermediate maps; see `DPTHead`."""
        height, width = image.shape[1:3]
        patch = self.config.encoder.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"the image has {height}x{width} pixels, but both sides must be multiples of the "
                f"patch size {patch}: resize it as the network's input_spec says"
            )
        features = self.encoder(image, train and "encoder" not in self.frozen)
        return self.head.decode(features, (height, width))

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Freshly initialised {"params"}; use `jax.eval_shape` if only shapes are needed."""
        side = 2 * self.config.encoder.patch_size
        return dict(self.init(key, jnp.zeros((1, side, side, 3))))


def build(config: Config, dtype: Any = jnp.float32, frozen: tuple[str, ...] = ()) -> DepthAnything:
    """The module for a config; see `DepthAnything` for `dtype` and `frozen`."""
    return DepthAnything(config, dtype, frozen)


# ---- weights -------------------------------------------------------------------------------------


def rules(config: Config) -> Rules:
    """The conversion table for the authors' names, shared by both versions."""
    outputs = (r"scratch\.output_conv1", r"scratch\.output_conv2\.0", r"scratch\.output_conv2\.2")
    head = (
        *dpt_head.reassemble_rules(config.head, "", r"projects\.{0}", r"resize_layers\.{0}"),
        *dpt_head.rules(config.head, outputs),
    )
    return (
        *prefix(dinov2.rules(config.encoder), "pretrained.", "encoder"),
        *prefix(head, "depth_head.", "head"),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from the names and shapes of a state dict; None for an unknown family.

    Fields that weights do not determine are those of a relative V2 model.
    """
    encoder = dinov2.infer(below(shapes, "pretrained."))
    head = below(shapes, "depth_head.")
    if encoder is None or not head:
        return None
    return _inferred(
        head,
        encoder,
        r"projects\.{}\.\w+",
        fused=r"scratch\.refinenet\d\..+\.bias",
        last=r"scratch\.output_conv2\.0\.\w+",
    )


def _inferred(
    shapes: Mapping[str, tuple[int, ...]],
    encoder: dinov2.Config,
    project: str,
    *,
    fused: str,
    last: str,
    **fields: Any,
) -> Config | None:
    """Infers the config, with widths from the entries that match; `project` has the level at
    `{}`."""
    project_features = tuple(width(shapes, project.format(level)) for level in range(4))
    fused_features, output_features = width(shapes, fused), width(shapes, last)
    known = tuple(features for features in project_features if features is not None)
    if len(known) < len(project_features) or fused_features is None or output_features is None:
        return None
    return Config(
        encoder=encoder,
        project_features=cast(tuple[int, int, int, int], known),
        fused_features=fused_features,
        output_features=output_features,
        **fields,
    )


def with_arguments(config: Config, arguments: Mapping[str, Any]) -> Config:
    """The config updated from `arguments`; unknown arguments are ignored.

    Raises:
        WeightsError: for an invalid version, depth or implementation.
    """
    names = ("version", "max_depth", "implementation")
    found = {name: arguments[name] for name in names if arguments.get(name) is not None}
    number = isinstance(found.get("max_depth", 1.0), int | float)
    if (
        found.get("version", 1) not in (1, 2)
        or not number
        or found.get("implementation", "authors") not in ("authors", "transformers")
    ):
        raise WeightsError(
            f"the checkpoint's args are {found}, which this network does not support"
        )
    return replace(config, **found)


def arguments(config: Config) -> dict[str, Any]:
    """What `with_arguments` reads: the config fields that weights do not determine."""
    return {
        "version": config.version,
        "max_depth": config.max_depth,
        "implementation": config.implementation,
    }


# ---- Hugging Face's transformers -----------------------------------------------------------------

_OWN = "diffdepth_jax"  # an entry of config.json that transformers ignores


def _transformers_rules(config: Config) -> Rules:
    outputs = (r"head\.conv1", r"head\.conv2", r"head\.conv3")
    head = dpt_head.transformers_rules(config.head, outputs)
    return (
        *prefix(dinov2.transformers_rules(config.encoder), "backbone.", "encoder"),
        *prefix(head, "", "head"),
    )


def _infer_transformers(
    shapes: Mapping[str, tuple[int, ...]], content: Mapping[str, Any]
) -> Config | None:
    encoder = dinov2.infer_transformers(below(shapes, "backbone."))
    if encoder is None or "head.conv1.weight" not in shapes:
        return None
    described = Described(content)
    backbone = described.part("backbone_config")
    described.require(
        depth_estimation_type=("relative", "metric"),
        head_in_index=(-1, 3),
        reassemble_factors=([4, 2, 1, 0.5],),
        patch_size=(encoder.patch_size,),
    )
    backbone.require(
        model_type=("dinov2",),
        hidden_act=("gelu",),
        layer_norm_eps=(1e-6,),
        apply_layernorm=(True,),
    )
    fields: dict[str, Any] = {}
    if content:
        # If config.json leaves it out, transformers' default for DINOv2 applies.
        heads = backbone.value("num_attention_heads", int, 12 if backbone else 6)
        encoder = replace(encoder, num_heads=heads)
        fields["version"] = _version(backbone, encoder.depth)
    if described.value("depth_estimation_type", str, "relative") == "metric":
        fields["max_depth"] = float(described.value("max_depth", (int, float), 1.0))
    own = described.part(_OWN)
    own.require(implementation=("transformers", "authors"))
    return _inferred(
        shapes,
        encoder,
        r"neck\.reassemble_stage\.layers\.{}\.projection\.\w+",
        fused=r"neck\.fusion_stage\.layers\.\d\..+\.bias",
        last=r"head\.conv2\.\w+",
        implementation=own.value("implementation", str, "transformers"),
        **fields,
    )


def _version(backbone: Described, depth: int) -> int:
    """The version, from the blocks whose outputs are used; transformers counts from the input."""
    taps = {2: dinov2.spread_taps(depth), 1: dinov2.last_taps(depth)}
    found = backbone.taps(depth, taps[1])
    for version, blocks in taps.items():
        if found == blocks:
            return version
    indices = {version: [block + 1 for block in blocks] for version, blocks in taps.items()}
    known = ", ".join(f"{blocks} (V{version})" for version, blocks in indices.items())
    raise ValueError(
        f"config.json: backbone_config.out_indices is {[block + 1 for block in found]}; Depth "
        f"Anything with {depth} blocks uses {known}"
    )


def _described(config: Config) -> dict[str, Any]:
    encoder, depth = config.encoder, config.max_depth
    if encoder.gated:
        ratio = round(encoder.hidden_features * 1.5 / encoder.embed_dim)
        hidden = (int(encoder.embed_dim * ratio * 2 / 3) + 7) // 8 * 8
    else:
        ratio = encoder.hidden_features // encoder.embed_dim
        hidden = encoder.embed_dim * ratio
    if hidden != encoder.hidden_features:
        raise ConfigError(
            f"transformers has no DINOv2 with embed_dim {encoder.embed_dim} and hidden_features "
            f"{encoder.hidden_features}; the closest has {hidden}"
        )
    if depth is not None and depth != round(depth):
        raise ConfigError(f"max_depth is {depth}; transformers only accepts whole metres")
    content = {
        "architectures": ["DepthAnythingForDepthEstimation"],
        "model_type": "depth_anything",
        "backbone_config": {
            "architectures": ["Dinov2Model"],
            "model_type": "dinov2",
            "hidden_size": encoder.embed_dim,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.num_heads,
            "mlp_ratio": ratio,
            "use_swiglu_ffn": encoder.gated,
            "layer_norm_eps": dinov2.EPS,
            "image_size": encoder.grid * encoder.patch_size,
            "patch_size": encoder.patch_size,
            "out_indices": [tap + 1 for tap in encoder.taps],
            "out_features": [f"stage{tap + 1}" for tap in encoder.taps],
            "reshape_hidden_states": False,
        },
        "patch_size": encoder.patch_size,
        "reassemble_hidden_size": encoder.embed_dim,
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_sizes": list(config.project_features),
        "fusion_hidden_size": config.fused_features,
        "head_in_index": -1,
        "head_hidden_size": config.output_features,
        "depth_estimation_type": "relative" if depth is None else "metric",
        "max_depth": 1 if depth is None else round(depth),
    }
    if config.implementation == "authors":
        content[_OWN] = {"implementation": "authors"}
    return content


def _preprocessor(config: Config) -> dict[str, Any]:
    return dpt_preprocessor(config.input_spec)


TRANSFORMERS = TransformersLayout(
    "depth_anything", _infer_transformers, _transformers_rules, _described, _preprocessor
)
