"""ZoeDepth (Bhat et al. 2023, arXiv:2302.12288): metric depth from a relative network.

A relative network, the *core*, is trained on many data sets; `zoedepth_heads` then turns its maps
into metric depth. The published models are N (trained on NYU), K (KITTI) and NK (both, with a
router), all with DPT and BEiT-L as the core. Depth Anything V1's metric models combine N's heads
with Depth Anything.

K's bins divide the depth range from 1 mm to 80 m. Its torch.hub entry builds it for 10 m and so
predicts an eighth of the depth it was trained for; `max_depth=10.0` reproduces that. The bins of
the other models are unbounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.config import choice
from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.models.encoders import beit
from diffdepth_jax.models.networks import dpt, dpt_head, zoedepth_heads
from diffdepth_jax.models.networks.network import (
    JudgesBatch,
    NetworkConfig,
    Published,
    TransformersLayout,
    Variants,
)
from diffdepth_jax.models.networks.transformers_json import Described, dpt_preprocessor
from diffdepth_jax.models.networks.zoedepth_heads import HeadsConfig, MetricHeads
from diffdepth_jax.models.tables import below, width
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights.rules import Rules, prefix

OUTPUT = "metric_depth"
INPUT = InputSpec(
    size=(384, 512),
    bound="minimal",
    multiple=32,
    interpolation="bilinear",
    align_corners=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    output_interpolation="bicubic",
    padding=3.0,
    flip_tta=True,
)
KITTI_DEPTH = 80.0  # metres
FILES: Mapping[str, Mapping[str, Any]] = {
    r"ZoeD_M12_(N|NK)": {},
    r"ZoeD_M12_K": {"max_depth": KITTI_DEPTH},
    r"depth_anything_metric_depth_(indoor|outdoor)": {},
}
UNDETERMINED: Mapping[str, tuple[Any, ...]] = {}

# Networks that can be the core, with the fields that their weights do not determine.
CORES: Mapping[str, Mapping[str, Any]] = {"dpt": {}, "depth_anything": {"version": 1}}
_DEPTH_ANYTHING_SIZE = (392, 518)
_NORMED_SIZE = (384, 768)


@dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig, Published):
    """A ZoeDepth network.

    Attributes:
        core: the relative network, a `dpt` or a `depth_anything` of version 1.
        heads: config of the metric heads.
        max_depth: metres; upper end of the range of normed bins, which require it.
        min_depth: metres; lower end of that range.
        input_size: target (height, width) for resizing images; None for the published size.
        keep_aspect: whether resizing keeps the aspect ratio. The authors' evaluation does not.
        padding: see `InputSpec`. The authors' evaluation uses none.
    """

    name: Literal["zoedepth"] = "zoedepth"
    core: Any = choice("network")
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    min_depth: float = 1e-3
    input_size: tuple[int, int] | None = None
    keep_aspect: bool = True
    padding: float = INPUT.padding

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.core.name not in CORES:
            raise ValueError(f"core is {self.core.name!r}; it must be {' or '.join(CORES)}")
        if self.core.output != "relative_disparity":
            raise ValueError(
                f"core predicts {self.core.output}; it must predict relative disparity"
            )
        wrong = {
            name: value
            for name, value in CORES[self.core.name].items()
            if getattr(self.core, name) != value
        }
        if wrong:
            wanted = ", ".join(f"core.{name}={value!r}" for name, value in wrong.items())
            raise ValueError(f"a core of the network {self.core.name!r} must have {wanted}")
        if not self.core.input_spec.keep_aspect:
            raise ValueError("core only accepts images of one size, but must accept any")
        levels = len(self.core.head.level_features)
        if len(self.heads.attractors) != levels:
            raise ValueError(
                f"heads.attractors {self.heads.attractors} must have {levels} entries, because the "
                "core has that many levels"
            )
        if self.heads.bins == "normed" and self.max_depth is None:
            raise ValueError("max_depth is None, but normed bins need a depth range: set it")
        if not 0 < self.min_depth < (self.max_depth or float("inf")):
            raise ValueError(
                f"min_depth is {self.min_depth}; it must be between 0 and max_depth "
                f"{self.max_depth}"
            )
        _ = self.input_spec

    @property
    def depth_range(self) -> tuple[float, float] | None:
        """Depth range of normed bins in metres; None for others."""
        if self.heads.bins != "normed" or self.max_depth is None:
            return None
        return self.min_depth, self.max_depth

    @property
    def input_spec(self) -> InputSpec:
        core = self.core.input_spec
        size = INPUT.size
        if self.core.name == "depth_anything":
            size = _DEPTH_ANYTHING_SIZE
        elif self.heads.bins == "normed":
            size = _NORMED_SIZE
        return replace(
            INPUT,
            size=self.input_size or size,
            keep_aspect=self.keep_aspect,
            multiple=core.multiple,
            mean=core.mean,
            std=core.std,
            padding=self.padding,
        )


def _variant(core: str, variant: str, max_depth: float | None = None, **heads: Any) -> Config:
    network = registry.module("network", core).VARIANTS[variant]
    return Config(core=network, heads=HeadsConfig(**heads), max_depth=max_depth)


_BEIT = ("dpt", "beit_large_384")
_DEPTH_ANYTHING = ("depth_anything", "v1_large")
VARIANTS = Variants(
    {
        "n": lambda: _variant(*_BEIT),
        "k": lambda: _variant(*_BEIT, KITTI_DEPTH, bins="normed"),
        "nk": lambda: _variant(
            *_BEIT,
            domains=zoedepth_heads.PUBLISHED_DOMAINS,
            attractors=(zoedepth_heads.DOMAIN_ATTRACTORS,) * 4,
            seed_features=64,
            projector_features=64,
            distribution_features=40,
        ),
        "depth_anything_indoor": lambda: _variant(*_DEPTH_ANYTHING),
        "depth_anything_outdoor": lambda: _variant(*_DEPTH_ANYTHING),
    }
)


class ZoeDepth(nn.Module):
    """The network. Images are normalised by the config's `input_spec`; depth is in metres.

    Attributes: config: the network's config.
        dtype: type used by convolutions and matrix products; parameters, normalisation statistics,
        bins and the result are float32. frozen: parts ("core", "heads") that are not trained:
        during training too, they run as in inference, without drop path.
    """

    config: Config
    dtype: Any = jnp.float32
    frozen: tuple[str, ...] = ()

    def setup(self) -> None:
        config = self.config
        core = registry.module("network", config.core.name)
        self.core = core.build(config.core, self.dtype)
        self.heads = MetricHeads(config.heads, config.depth_range, self.dtype)

    def __call__(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Normalised image to depth of the same size, not clipped.

        Raises:
            ValueError: for an image whose sides are not multiples of the core's patch.
        """
        return self.heads(self.core.decode(image, train and "core" not in self.frozen))

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Freshly initialised {"params"}; use `jax.eval_shape` if only shapes are needed."""
        side = 2 * self.config.input_spec.multiple
        return dict(self.init(key, jnp.zeros((1, side, side, 3))))


class RoutedZoeDepth(ZoeDepth, JudgesBatch):
    """The module with domains; the router chooses one for the whole batch."""


def build(config: Config, dtype: Any = jnp.float32, frozen: tuple[str, ...] = ()) -> ZoeDepth:
    """The module for a config; see `ZoeDepth` for `dtype` and `frozen`."""
    return (RoutedZoeDepth if config.heads.domains else ZoeDepth)(config, dtype, frozen)


# ---- weights -------------------------------------------------------------------------------------

_CORE = "core.core."


def rules(config: Config) -> Rules:
    """The conversion table for the authors' names."""
    core = registry.module("network", config.core.name).rules(config.core)
    heads = zoedepth_heads.rules(config.heads, zoedepth_heads.AUTHORS)
    return (*prefix(core, _CORE, "core"), *prefix(heads, "", "heads"))


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from the names and shapes of a state dict; None for an unknown core.

    Weights do not determine the range of normed bins; K's is assumed.
    """
    names = below(shapes, _CORE)
    core = None
    for name in set(CORES) & set(registry.matching("network", names)):
        core = registry.module("network", name).infer(names)
    heads = zoedepth_heads.infer(shapes, zoedepth_heads.AUTHORS)
    if core is None or heads is None:
        return None
    core = replace(core, **CORES[core.name])
    return Config(core=core, heads=heads, max_depth=_default_depth(heads))


def _default_depth(heads: HeadsConfig) -> float | None:
    return KITTI_DEPTH if heads.bins == "normed" else None


def with_arguments(config: Config, arguments: Mapping[str, Any]) -> Config:
    """The config updated with the fields that our own files store because weights lack them.

    Raises:
        WeightsError: if they are not valid for this network.
    """
    known = {name: value for name, value in arguments.items() if name in (*_UNDETERMINED, "heads")}
    try:
        config = config_lib.updated(config, known, resolve=registry.module, path="args")
    except ConfigError as error:
        raise WeightsError(str(error)) from error
    core = arguments.get("core", {})
    if not isinstance(core, Mapping):
        raise WeightsError(f"args.core of the checkpoint is {core!r}; it must be a mapping")
    file = registry.module("network", config.core.name)
    return replace(config, core=file.with_arguments(config.core, core))


def arguments(config: Config) -> dict[str, Any]:
    """What `with_arguments` reads: the fields that weights do not determine."""
    core = registry.module("network", config.core.name).arguments(config.core)
    heads = {name: getattr(config.heads, name) for name in _UNDETERMINED_HEADS}
    return {name: getattr(config, name) for name in _UNDETERMINED} | {"core": core, "heads": heads}


_UNDETERMINED = ("max_depth", "min_depth", "input_size", "keep_aspect", "padding")
_UNDETERMINED_HEADS = ("temperatures", "router_heads")


# ---- Hugging Face's transformers -----------------------------------------------------------------

_OWN = "diffdepth_jax"  # an entry of config.json that transformers ignores
_ROUTER_FEATURES, _ROUTER_DEPTH = 128, 4  # fixed in transformers
_SEED_FEATURES, _PROJECTOR_FEATURES = 256, 128  # fixed in transformers without domains


def _transformers_rules(config: Config) -> Rules:
    core = config.core
    if core.name != "dpt" or core.encoder.name != "beit":
        raise ConfigError(
            f"transformers only has ZoeDepth with DPT and BEiT, not with {core.name} and "
            f"{core.encoder.name}"
        )
    outputs = (r"relative_head\.conv1", r"relative_head\.conv2", r"relative_head\.conv3")
    return (
        *prefix(beit.transformers_rules(core.encoder), "backbone.", "core/encoder"),
        *prefix(dpt_head.transformers_rules(core.head, outputs), "", "core/head"),
        *prefix(
            zoedepth_heads.rules(config.heads, zoedepth_heads.TRANSFORMERS), "metric_head.", "heads"
        ),
    )


def _infer_transformers(
    shapes: Mapping[str, tuple[int, ...]], content: Mapping[str, Any]
) -> Config | None:
    metric = below(shapes, "metric_head.")
    if not metric or "relative_head.conv1.weight" not in shapes:
        return None
    described = Described(content)
    described.require(
        readout_type=("project",),
        reassemble_factors=([4, 2, 1, 0.5],),
        head_in_index=(-1, 3),
        hidden_act=("gelu",),
        use_batch_norm_in_fusion_residual=(False,),
        use_bias_in_fusion_residual=(None, True),
        add_projection=(False,),
        attractor_kind=("mean",),
        bin_centers_type=("softplus", "normed"),
    )
    encoder = beit.infer_transformers(below(shapes, "backbone."), described.part("backbone_config"))
    parts = [Described(each) for each in described.mappings("bin_configurations")]
    domains = bins = None
    if content:
        domains = tuple(each.value("name", str, "") for each in parts) if len(parts) > 1 else ()
        bins = cast(zoedepth_heads.Bins, described.value("bin_centers_type", str, "softplus"))
    heads = zoedepth_heads.infer(metric, zoedepth_heads.TRANSFORMERS, domains, bins)
    if encoder is None or heads is None:
        return None
    low, high = HeadsConfig.temperatures
    number = (int, float)
    heads = replace(
        heads,
        temperatures=(
            float(described.value("min_temp", number, low)),
            float(described.value("max_temp", number, high)),
        ),
        router_heads=described.value(
            "patch_transformer_num_attention_heads", int, HeadsConfig.router_heads
        ),
    )
    fields: dict[str, Any] = {}
    if heads.bins == "normed":
        range_ = parts[0] if parts else Described({})
        fields = {
            "min_depth": float(range_.value("min_depth", number, Config.min_depth)),
            "max_depth": float(range_.value("max_depth", number, KITTI_DEPTH)),
        }
    project = r"neck\.reassemble_stage\.layers\.{}\.projection\.\w+"
    core = dpt.Config(
        encoder=encoder,
        project_features=tuple(width(shapes, project.format(level)) for level in range(4)),
        fused_features=width(shapes, r"neck\.fusion_stage\.layers\.\d\..+\.bias") or 0,
        output_features=width(shapes, r"relative_head\.conv2\.\w+") or 0,
    )
    config = Config(core=core, heads=heads, **fields)
    return with_arguments(config, described.value(_OWN, Mapping, {}))


def _described(config: Config) -> dict[str, Any]:
    core, heads = config.core, config.heads
    _check_transformers_has(config)
    low, high = heads.temperatures
    depths = {"nyu": 10.0, "kitti": KITTI_DEPTH}  # unused by unbounded bins
    domains = [{"name": name} for name in heads.domains] or [{}]
    content = {
        "architectures": ["ZoeDepthForDepthEstimation"],
        "model_type": "zoedepth",
        "backbone_config": beit.described(core.encoder),
        "readout_type": "project",
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_sizes": list(core.project_features),
        "fusion_hidden_size": core.fused_features,
        "head_in_index": -1,
        "num_relative_features": core.output_features,
        "add_projection": False,
        "bottleneck_features": core.fused_features,
        "num_attractors": list(heads.attractors),
        "bin_embedding_dim": heads.embedding_features,
        "attractor_kind": "mean",
        "min_temp": low,
        "max_temp": high,
        "bin_centers_type": heads.bins,
        "bin_configurations": [
            {
                **domain,
                "n_bins": heads.num_bins,
                "min_depth": config.min_depth,
                "max_depth": config.max_depth or depths.get(domain.get("name", ""), 10.0),
            }
            for domain in domains
        ],
        _OWN: arguments(config),
    }
    if heads.domains:
        content |= {
            "num_patch_transformer_layers": heads.router_depth,
            "patch_transformer_hidden_size": heads.router_features,
            "patch_transformer_intermediate_size": heads.router_hidden_features,
            "patch_transformer_num_attention_heads": heads.router_heads,
        }
    return content


def _check_transformers_has(config: Config) -> None:
    """Rejects widths that differ from those that transformers fixes or derives from others."""
    core, heads = config.core, config.heads
    embedding, hidden = heads.embedding_features, core.output_features
    wanted = {
        "seed_features": _SEED_FEATURES,
        "projector_features": _PROJECTOR_FEATURES,
        "distribution_features": (hidden + 1 + embedding) // 2,
    }
    if heads.domains:
        wanted = {
            "seed_features": embedding // 2,
            "projector_features": embedding // 2,
            "distribution_features": (hidden + embedding) // 4,
            "attractors": (zoedepth_heads.DOMAIN_ATTRACTORS,) * 4,
            "router_features": _ROUTER_FEATURES,
            "router_depth": _ROUTER_DEPTH,
        }
    wrong = [
        f"heads.{name} is {getattr(heads, name)}, but transformers has {value}"
        for name, value in wanted.items()
        if getattr(heads, name) != value
    ]
    if wrong:
        raise ConfigError(f"transformers does not support this ZoeDepth: {'; '.join(wrong)}")


def _preprocessor(config: Config) -> dict[str, Any]:
    if config.padding not in (0.0, INPUT.padding):
        raise ConfigError(
            f"padding is {config.padding}; transformers only supports {INPUT.padding} or none"
        )
    return dpt_preprocessor(config.input_spec) | {
        "image_processor_type": "ZoeDepthImageProcessor",
        "do_pad": config.padding > 0,
    }


TRANSFORMERS = TransformersLayout(
    "zoedepth", _infer_transformers, _transformers_rules, _described, _preprocessor
)
