"""DPT, dense prediction transformers (Ranftl et al. 2021, arXiv:2103.13413), as MiDaS trained them.

The head in `dpt_head` maps four feature maps of a backbone, and its class tokens if it has any, to
relative disparity: non-negative, larger is nearer, with unknown scale and shift. The head's options
follow from the backbone, which is the only difference between MiDaS 3 (ViT-L, hybrid) and 3.1
(BEiT, Swin; Birkl et al. 2023, arXiv:2307.14460).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.encoders.encoder import ForImageSize, HasClassTokens
from diffdepth_jax.models.networks import dpt_head
from diffdepth_jax.models.networks.dpt_head import Decoded, DPTHead, DPTHeadConfig, Factor
from diffdepth_jax.models.networks.network import (
    HasEncoder,
    NetworkConfig,
    Published,
    TransformersLayout,
    Variants,
    encoder_variant,
)
from diffdepth_jax.models.networks.transformers_json import Described, dpt_preprocessor
from diffdepth_jax.models.tables import below, width
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights.rules import Rules, prefix

OUTPUT = "relative_disparity"
INPUT = InputSpec(
    size=(384, 384),
    bound="minimal",
    multiple=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    output_interpolation="bicubic",
)
FILES: Mapping[str, Mapping[str, Any]] = {
    r"dpt_(large|hybrid|beit_large|beit_base|swin2_large|swin2_base|swin_large)_384": {},
    r"dpt_beit_large_512": {},
    r"dpt_swin2_tiny_256": {},
    r"dpt_large-midas-\w+": {},
    r"dpt_hybrid-midas-\w+": {},
}
UNDETERMINED: Mapping[str, tuple[Any, ...]] = {}

Implementation = Literal["authors", "transformers"]


@dataclass(frozen=True)
class Backbone:
    """An encoder that DPT was published with.

    Attributes:
        layout: key in the encoder's `LAYOUTS` that matches the authors' files.
        root: prefix of its names in transformers, where a ViT is part of the network and other
            encoders are separate models; None if transformers has no such DPT.
        square: whether transformers only accepts square images.
    """

    layout: str
    root: str | None
    square: bool


BACKBONES: Mapping[str, Backbone] = {
    "vit": Backbone("timm", "dpt.", True),
    "hybrid_vit": Backbone("timm", "dpt.", True),
    "beit": Backbone("timm", "backbone.", False),
    "swin2": Backbone("microsoft", "backbone.", True),
    "swin": Backbone("microsoft", None, True),
}


@dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig, HasEncoder, Published):
    """A DPT network.

    Attributes:
        encoder, max_depth: see `HasEncoder` and `NetworkConfig`.
        project_features: for each level with a class token, the channels that its map is projected
            to before resampling; None for levels without one, which are used unchanged.
        fused_features: channels of the fused maps.
        output_features: channels before the last convolution.
        implementation: the authors' or that of transformers, which resizes images with Pillow's
            bicubic filter, and to squares for a ViT. (Its LayerNorm epsilon is the encoder's
            `layer_norm_eps`. For a side with an odd number of patches its fusion resizes in a
            different order, which is not reproduced: `input_spec` rounds to an even number.)
    """

    name: Literal["dpt"] = "dpt"
    project_features: tuple[int | None, ...] = (256, 512, 1024, 1024)
    fused_features: int = 256
    output_features: int = 32
    implementation: Implementation = "authors"

    def __post_init__(self) -> None:
        super().__post_init__()
        readout = tuple(features is not None for features in self.project_features)
        if readout != self._class_levels:
            raise ValueError(
                f"project_features {self.project_features} must be numbers at levels where the "
                f"encoder {self.encoder.name!r} has a class token, and None at the others: "
                f"{self._class_levels}"
            )
        sizes = (self.fused_features, self.output_features, *filter(None, self.project_features))
        if min(sizes) < 1 or self.fused_features % 2 or 0 in self.project_features:
            raise ValueError(
                f"fused_features {self.fused_features}, output_features {self.output_features} and "
                f"project_features {self.project_features} must be positive, and fused_features "
                "even"
            )
        _ = self.head

    @property
    def head(self) -> DPTHeadConfig:
        """The config of the head for this encoder."""
        return DPTHeadConfig(
            project_features=self.project_features,
            factors=tuple(map(_factor, self.encoder.reductions, (4, 8, 16, 32))),
            readout=self._class_levels,
            level_features=(self.fused_features,) * 4,
            output_features=self.output_features,
        )

    @property
    def _class_levels(self) -> tuple[bool, ...]:
        if isinstance(self.encoder, HasClassTokens):
            return self.encoder.class_levels
        return (False,) * len(self.encoder.channels)

    @property
    def input_spec(self) -> InputSpec:
        spec, backbone = INPUT, BACKBONES.get(self.encoder.name)
        side = self.encoder.image_size if isinstance(self.encoder, ForImageSize) else None
        if side is not None:
            spec = replace(spec, size=(side, side), keep_aspect=not self.encoder.fixed_size)
        if self.implementation == "transformers":
            keep_aspect = spec.keep_aspect and not (backbone and backbone.square)
            spec = replace(spec, interpolation="pillow", keep_aspect=keep_aspect)
        return spec


def _factor(reduction: int, wanted: int) -> Factor:
    """The resampling that turns a map of one stride into one of another."""
    factors: dict[float, Factor] = {4: "4", 2: "2", 1: "1", 0.5: "1/2"}
    if reduction / wanted not in factors:
        raise ValueError(f"a map of stride {reduction} cannot be resampled to stride {wanted}")
    return factors[reduction / wanted]


def _variant(
    encoder: str, variant: str, project_features: tuple[int | None, ...] = (None,) * 4
) -> Config:
    return Config(encoder=encoder_variant(encoder, variant), project_features=project_features)


_BASE, _LARGE = (96, 192, 384, 768), (256, 512, 1024, 1024)

VARIANTS = Variants(
    {
        "large_384": lambda: _variant("vit", "large_384", _LARGE),
        "hybrid_384": lambda: _variant("hybrid_vit", "base_resnet50_384", (None, None, 768, 768)),
        "beit_base_384": lambda: _variant("beit", "base_384", _BASE),
        "beit_large_384": lambda: _variant("beit", "large_384", _LARGE),
        "beit_large_512": lambda: _variant("beit", "large_512", _LARGE),
        "swin2_large_384": lambda: _variant("swin2", "large_window12to24"),
        "swin2_base_384": lambda: _variant("swin2", "base_window12to24"),
        "swin2_tiny_256": lambda: _variant("swin2", "tiny_window16"),
        "swin_large_384": lambda: _variant("swin", "large_384"),
    }
)


class DPT(nn.Module):
    """The network. Images are normalised by the config's `input_spec`; disparity is relative.

    Attributes: config: the network's config.
        dtype: type used by convolutions and matrix products; parameters, normalisation statistics
        and the result are float32. frozen: parts ("encoder", "head") that are not trained: during
        training too, they run as in inference, without drop path.
    """

    config: Config
    dtype: Any = jnp.float32
    frozen: tuple[str, ...] = ()

    def setup(self) -> None:
        encoder = registry.module("encoder", self.config.encoder.name)
        self.encoder = encoder.Encoder(self.config.encoder, dtype=self.dtype)
        self.head = DPTHead(self.config.head, dtype=self.dtype)

    def __call__(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Normalised image to disparity of the same size.

        Raises:
            ValueError: for an image whose sides are not multiples of the encoder's patch.
        """
        return self.decode(image, train).output

    def decode(self, image: Float[Array, "b h w 3"], train: bool = False) -> Decoded:
        """Normalised image to disparity, and the head's intermediate maps."""
        image, train = jnp.asarray(image), train and "encoder" not in self.frozen
        height, width = image.shape[1:3]
        unit = max(self.config.encoder.reductions)
        if not height or not width or height % unit or width % unit:
            raise ValueError(
                f"the image has {height}x{width} pixels, but both sides must be multiples of "
                f"{unit}, the stride of the coarsest map: resize it as the network's input_spec "
                "says"
            )
        if isinstance(self.config.encoder, HasClassTokens):
            features, class_tokens = self.encoder.with_class_tokens(image, train)
        else:
            features, class_tokens = self.encoder(image, train), None
        return self.head.decode(features, (height, width), class_tokens)

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Freshly initialised {"params"}; use `jax.eval_shape` if only shapes are needed."""
        side = 2 * max(self.config.encoder.reductions)
        if isinstance(self.config.encoder, ForImageSize) and self.config.encoder.fixed_size:
            side = self.config.encoder.image_size
        return dict(self.init(key, jnp.zeros((1, side, side, 3))))


def build(config: Config, dtype: Any = jnp.float32, frozen: tuple[str, ...] = ()) -> DPT:
    """The module for a config; see `DPT` for `dtype` and `frozen`."""
    return DPT(config, dtype, frozen)


def rules(config: Config) -> Rules:
    """The conversion table for the authors' names."""
    file = registry.module("encoder", config.encoder.name)
    backbone = BACKBONES.get(config.encoder.name)
    encoder = file.LAYOUTS[backbone.layout].rules if backbone else file.rules
    post = r"pretrained\.act_postprocess{1}"
    outputs = (r"scratch\.output_conv\.0", r"scratch\.output_conv\.2", r"scratch\.output_conv\.4")
    names = (rf"{post}\.0\.project\.0", rf"{post}\.3", rf"{post}\.4")
    head = (
        *dpt_head.reassemble_rules(config.head, *names),
        *dpt_head.rules(config.head, outputs),
    )
    return (*prefix(encoder(config.encoder), _BACKBONE, "encoder"), *prefix(head, "", "head"))


_BACKBONE = "pretrained.model."


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from the names and shapes of a state dict; None for an unknown backbone.

    Weights do not determine the taps; those of the releases are assumed.
    """
    if "dpt" not in registry.matching("network", shapes):
        return None
    names = below(shapes, _BACKBONE)
    for name, backbone in BACKBONES.items():
        encoder = registry.module("encoder", name).LAYOUTS[backbone.layout].infer(names)
        if encoder is not None:
            break
    else:
        return None
    post = r"pretrained\.act_postprocess{}\.[34]\.(weight|bias)"
    return Config(
        encoder=encoder,
        project_features=tuple(width(shapes, post.format(level)) for level in (1, 2, 3, 4)),
        fused_features=width(shapes, r"scratch\.(layer\d_rn|refinenet\d\.out_conv)\.weight") or 0,
        output_features=width(shapes, r"scratch\.output_conv\.2\.(weight|bias)") or 0,
    )


def with_arguments(config: Config, arguments: Mapping[str, Any]) -> Config:
    """The config updated from `arguments`; unknown arguments are ignored.

    Raises:
        ConfigError: for invalid values.
    """
    found = {}
    if isinstance(arguments.get("implementation"), str):
        found["implementation"] = arguments["implementation"]
    if isinstance(arguments.get("encoder"), Mapping):
        found["encoder"] = arguments["encoder"]
    return config_lib.updated(config, found, resolve=registry.module, path="args")


def arguments(config: Config) -> dict[str, Any]:
    """What `with_arguments` reads: fields, also the encoder's, that weights do not determine."""
    found: dict[str, Any] = {"implementation": config.implementation}
    if (backbone := BACKBONES.get(config.encoder.name)) is not None:
        file = registry.module("encoder", config.encoder.name)
        undetermined = file.LAYOUTS[backbone.layout].undetermined
        found["encoder"] = {name: getattr(config.encoder, name) for name in undetermined}
    return found


# ---- Hugging Face's transformers -----------------------------------------------------------------

_OWN = "diffdepth_jax"  # an entry of config.json that transformers ignores


def _root(config: Config) -> str:
    backbone = BACKBONES.get(config.encoder.name)
    if backbone is None or backbone.root is None:
        raise ConfigError(f"transformers has no DPT with the encoder {config.encoder.name!r}")
    return backbone.root


def _transformers_rules(config: Config) -> Rules:
    root = _root(config)
    encoder = registry.module("encoder", config.encoder.name).transformers_rules(config.encoder)
    outputs = (r"head\.head\.0", r"head\.head\.2", r"head\.head\.4")
    head = dpt_head.transformers_rules(config.head, outputs)
    return (*prefix(encoder, root, "encoder"), *prefix(head, "", "head"))


def _infer_transformers(
    shapes: Mapping[str, tuple[int, ...]], content: Mapping[str, Any]
) -> Config | None:
    if "head.head.0.weight" not in shapes:
        return None
    described = Described(content)
    factors: list[list[float]] = [[4, 2, 1, 0.5]]
    if content.get("is_hybrid"):
        # As published (Intel/dpt-hybrid-midas); its first two maps are never resampled.
        factors.append([1, 1, 1, 0.5])
    described.require(
        is_hybrid=(False, True),
        readout_type=("project",),
        add_projection=(False,),
        use_batch_norm_in_fusion_residual=(False, None),
        use_bias_in_fusion_residual=(None, True),
        reassemble_factors=tuple(factors),
        head_in_index=(-1, 3),
    )
    own = described.part(_OWN)
    own.require(implementation=("transformers", "authors"))
    backbone = described.part("backbone_config")
    for name, each in BACKBONES.items():
        if each.root is None:
            continue
        file, its = registry.module("encoder", name), backbone
        if each.root == "dpt.":
            its = described
        encoder = file.infer_transformers(below(shapes, each.root), its)
        if encoder is not None:
            break
    else:
        return None
    project = r"neck\.reassemble_stage\.layers\.{}\.projection\.\w+"
    return Config(
        encoder=encoder,
        project_features=tuple(width(shapes, project.format(level)) for level in range(4)),
        fused_features=width(shapes, r"neck\.fusion_stage\.layers\.\d\..+\.bias") or 0,
        output_features=width(shapes, r"head\.head\.2\.(weight|bias)") or 0,
        implementation=cast(Implementation, own.value("implementation", str, "transformers")),
    )


def _described(config: Config) -> dict[str, Any]:
    if config.output_features != 32:
        raise ConfigError(
            f"output_features is {config.output_features}; transformers only supports 32"
        )
    root = _root(config)
    projected = zip(config.project_features, config.encoder.channels, strict=True)
    content = {
        "architectures": ["DPTForDepthEstimation"],
        "model_type": "dpt",
        "is_hybrid": False,
        "readout_type": "project",
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_sizes": [features or channels for features, channels in projected],
        "fusion_hidden_size": config.fused_features,
        "head_in_index": -1,
        "add_projection": False,
        "use_batch_norm_in_fusion_residual": False,
    }
    encoder = registry.module("encoder", config.encoder.name).described(config.encoder)
    content |= encoder if root == "dpt." else {"backbone_config": encoder}
    if config.implementation == "authors":
        content[_OWN] = {"implementation": "authors"}
    return content


def _preprocessor(config: Config) -> dict[str, Any]:
    return dpt_preprocessor(config.input_spec)


TRANSFORMERS = TransformersLayout(
    "dpt", _infer_transformers, _transformers_rules, _described, _preprocessor
)
