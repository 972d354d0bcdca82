"""The hybrid vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1) of DPT.

A ResNet replaces the patch embedding: bottleneck blocks with weight-standardised convolutions (Qiao
et al. 2019, arXiv:1903.10520) and GroupNorm. Convolutions and max-pooling are padded as in
TensorFlow: if the total padding is odd, the extra row or column goes at the bottom or right. The
features are the maps of all ResNet stages but the last, and the output tokens of some of the
blocks. Names and epsilons follow timm.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffdepth_jax import registry
from diffdepth_jax.models.encoders import vit
from diffdepth_jax.models.encoders.encoder import ForImageSize, HasClassTokens
from diffdepth_jax.models.layers import Conv, GroupNorm, normal, transformer_init
from diffdepth_jax.models.tables import Layout, conv_rules, count, norm_rules, width
from diffdepth_jax.models.transformer import quarters
from diffdepth_jax.ops.conv import conv3x3
from diffdepth_jax.ops.image import pad_to_multiple
from diffdepth_jax.ops.remat import Remat
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Rule, Rules, conv


@dataclass(frozen=True)
class Config(ForImageSize, HasClassTokens):
    """A ResNet followed by a vision transformer.

    Attributes:
        stem_features: channels of the ResNet's first convolution.
        depths: blocks of each ResNet stage.
        widths: channels of each stage, four times those of its 3x3 convolutions.
        num_groups: groups of every GroupNorm.
        embed_dim: channels of the tokens, each of which is a pixel of the last stage's map.
        depth: number of the transformer's blocks.
        num_heads: number of attention heads.
        hidden_features: hidden channels of the feed-forward part.
        grid: side of the square token grid of pretraining, which the position embeddings belong to.
        taps: blocks, counted from 0, whose output tokens are features.
        layer_norm_eps: epsilon of the layer norms.
        drop_path_rate: rate of the last block; rates increase linearly from 0.
        remat: which parts of a transformer block are recomputed in the backward pass, see
            `ops.remat`.
    """

    name: Literal["hybrid_vit"] = "hybrid_vit"
    stem_features: int = 64
    depths: tuple[int, ...] = (3, 4, 9)
    widths: tuple[int, ...] = (256, 512, 1024)
    num_groups: int = 32
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden_features: int = 3072
    grid: int = 24
    taps: tuple[int, ...] = (8, 11)
    layer_norm_eps: float = 1e-6
    drop_path_rate: float = 0.0
    remat: Remat = "none"

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.widths) or min(self.depths) < 1:
            raise ValueError(
                f"depths {self.depths} and widths {self.widths} must have one positive entry per "
                "stage"
            )
        groups = self.num_groups
        hidden = tuple(features // 4 for features in self.widths)
        if groups < 1 or any(
            features < 1 or features % groups
            for features in (self.stem_features, *self.widths, *hidden)
        ):
            raise ValueError(
                f"stem_features {self.stem_features}, widths {self.widths} and a quarter of each "
                f"width must be divisible by num_groups {groups}"
            )
        vit.check(self)

    @property
    def patch_size(self) -> int:
        """Side of a token in pixels."""
        return 2 ** (len(self.depths) + 1)

    @property
    def channels(self) -> tuple[int, ...]:
        return (*self.widths[:-1], *[self.embed_dim] * len(self.taps))

    @property
    def reductions(self) -> tuple[int, ...]:
        stages = tuple(2 ** (stage + 2) for stage in range(len(self.depths) - 1))
        return (*stages, *[self.patch_size] * len(self.taps))

    @property
    def class_levels(self) -> tuple[bool, ...]:
        return (*[False] * (len(self.depths) - 1), *[True] * len(self.taps))

    @property
    def image_size(self) -> int:
        return self.grid * self.patch_size


VARIANTS = {"base_resnet50_384": Config()}


class Encoder(nn.Module):
    """Image to the maps of the ResNet's stages and the output tokens of each tapped block.

    Images whose sides are not multiples of a token's are padded by repeating the last row and
    column.
    """

    config: Config
    dtype: Any = jnp.float32

    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        """Only the features of `with_class_tokens`."""
        return self.with_class_tokens(image, train)[0]

    @nn.compact
    def with_class_tokens(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> tuple[Features, tuple[Float[Array, "b c"] | None, ...]]:
        """The features, and the class token after each tapped block; None for the stages."""
        config = self.config
        features = pad_to_multiple(jnp.asarray(image), config.patch_size)
        features = StandardisedConv(config.stem_features, 7, 2, self.dtype, name="stem_conv")(
            features
        )
        features = jax.nn.relu(GroupNorm(config.num_groups, name="stem_norm")(features))
        features = nn.max_pool(features, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        maps = []
        for stage, (depth, channels) in enumerate(zip(config.depths, config.widths, strict=True)):
            for block in range(depth):
                features = Block(
                    channels,
                    2 if stage > 0 and block == 0 else 1,
                    config.num_groups,
                    has_shortcut=block == 0,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(features)
            maps.append(features)
        patches = Conv(
            config.embed_dim,
            1,
            dtype=self.dtype,
            kernel_init=transformer_init,
            bias_init=nn.initializers.zeros_init(),
            name="patch_embed",
        )(maps.pop())
        tokens, class_tokens = vit.transform(self, config, patches, train)
        return (*maps, *tokens), (*[None] * len(maps), *class_tokens)


class Block(nn.Module):
    """Three convolutions with norms, the second of which may be strided, and a shortcut.

    In the first block of each stage the shortcut has weights.
    """

    features: int
    stride: int
    num_groups: int
    has_shortcut: bool
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        hidden, quarter = inputs, self.features // 4
        layers = ((1, 1, quarter), (3, self.stride, quarter), (1, 1, self.features))
        for index, (size, stride, features) in enumerate(layers, 1):
            hidden = hidden if index == 1 else jax.nn.relu(hidden)
            hidden = self._layer(hidden, features, size, stride, f"conv{index}", f"norm{index}")
        if self.has_shortcut:
            names = "shortcut_conv", "shortcut_norm"
            inputs = self._layer(inputs, self.features, 1, self.stride, *names)
        return jax.nn.relu(hidden + inputs)

    def _layer(
        self, inputs: Array, features: int, size: int, stride: int, conv: str, norm: str
    ) -> Array:
        outputs = StandardisedConv(features, size, stride, self.dtype, name=conv)(inputs)
        return GroupNorm(self.num_groups, name=norm)(outputs)


class StandardisedConv(nn.Module):
    """2-D convolution without bias, with the kernel standardised for each output channel.

    Mean 0 and biased variance 1, computed in float32. Padding is TensorFlow's "SAME", with zeros.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: Any
    eps: float = 1e-8

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        size = self.kernel_size
        init = normal((2.0 / (size * size * self.features)) ** 0.5)
        kernel = self.param("kernel", init, (size, size, inputs.shape[-1], self.features))
        kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
        variance = jnp.square(kernel).mean((0, 1, 2), keepdims=True)
        kernel = (kernel * lax.rsqrt(variance + self.eps)).astype(self.dtype)
        inputs = inputs.astype(self.dtype)
        if (size, self.stride) == (3, 1):
            return conv3x3(inputs, kernel)
        strides = (self.stride, self.stride)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(inputs, kernel, strides, "SAME", dimension_numbers=layout)


# ---- weights -------------------------------------------------------------------------------------


def rules(config: Config) -> Rules:
    """The conversion table for timm's names, including its classifier's."""
    root = r"patch_embed\.backbone"
    return (
        *_resnet_rules(
            rf"{root}\.stem\.conv", rf"{root}\.stem\.norm", rf"{root}\.stages", "blocks"
        ),
        *conv_rules(r"patch_embed\.proj", "patch_embed"),
        *vit.transformer_rules(config),
    )


def _resnet_rules(stem_conv: str, stem_norm: str, stages: str, blocks: str) -> Rules:
    """The rules for the ResNet, given patterns for the names of its parts."""
    block, here = rf"{stages}\.(\d+)\.{blocks}\.(\d+)", r"stage\1_block\2"
    return (
        *conv_rules(stem_conv, "stem_conv")[:1],
        *norm_rules(stem_norm, "stem_norm"),
        Rule(rf"{block}\.(conv\d)\.weight", rf"params/{here}/\3/kernel", conv),
        *norm_rules(rf"{block}\.(norm\d)", rf"{here}/\3"),
        *conv_rules(rf"{block}\.downsample\.conv", f"{here}/shortcut_conv")[:1],
        *norm_rules(rf"{block}\.downsample\.norm", f"{here}/shortcut_norm"),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    Weights determine neither the heads (64 channels each are assumed), nor the groups (32), nor the
    taps (the last blocks of the third and fourth quarters).

    Raises:
        ValueError: if they are of this family, but describe an impossible network.
    """
    if "hybrid_vit" not in registry.matching("encoder", shapes):
        return None
    root, depth = r"patch_embed\.backbone", count(shapes, r"blocks\.(\d+)\.")
    return Config(
        **_inferred_resnet(shapes, rf"{root}\.stem\..+", rf"{root}\.stages", "blocks"),
        **vit.inferred(shapes, r"blocks\.\d+\.norm\d", r"blocks\.\d+\.mlp\.fc1", "pos_embed"),
        depth=depth,
        taps=quarters(depth)[2:],
    )


def _inferred_resnet(
    shapes: Mapping[str, tuple[int, ...]], stem: str, stages: str, blocks: str
) -> dict[str, Any]:
    """The ResNet's fields, given patterns for the names of its parts."""
    numbers = range(count(shapes, rf"{stages}\.(\d+)\."))
    stem_features = width(shapes, stem) or 0
    widths = tuple(
        width(shapes, rf"{stages}\.{stage}\.{blocks}\.\d+\.(conv3|norm3)\.\w+") or 0
        for stage in numbers
    )
    return {
        "stem_features": stem_features,
        "depths": tuple(
            count(shapes, rf"{stages}\.{stage}\.{blocks}\.(\d+)\.") for stage in numbers
        ),
        "widths": widths,
        # As many as in the published model, or as many as possible.
        "num_groups": math.gcd(32, stem_features, *(features // 4 for features in widths)),
    }


# ---- Hugging Face's transformers -----------------------------------------------------------------


def transformers_rules(config: Config) -> Rules:
    """The conversion table for the names that transformers' DPT uses."""
    root = r"embeddings\.backbone\.bit"
    stem = rf"{root}\.embedder"
    return (
        *_resnet_rules(
            rf"{stem}\.convolution", rf"{stem}\.norm", rf"{root}\.encoder\.stages", "layers"
        ),
        *conv_rules(r"embeddings\.projection", "patch_embed"),
        *vit.transformers_transformer_rules(config),
    )


def infer_transformers(
    shapes: Mapping[str, tuple[int, ...]], described: Any = None
) -> Config | None:
    """Infers the config from weights named as in `transformers_rules`; None for others.

    Args:
        shapes: shapes of the weights by name.
        described: the content of a DPT `config.json`. If empty, heads, groups and taps are as in
            `infer`.

    Raises:
        ValueError: if they are of this family, but together with `described` give an impossible
            network.
    """
    root, found = r"embeddings\.backbone\.bit", vit.inferred_transformers(shapes)
    if found is None or "embeddings.backbone.bit.embedder.convolution.weight" not in shapes:
        return None
    stem, stages = rf"{root}\.embedder\..+", rf"{root}\.encoder\.stages"
    fields = {**_inferred_resnet(shapes, stem, stages, "layers"), **found}
    depth = fields["depth"]
    taps, eps = quarters(depth)[2:], vit.EPS_OF_TRANSFORMERS
    if described:
        resnet = described.part("backbone_config")
        resnet.require(
            model_type=("bit",),
            layer_type=("bottleneck",),
            global_padding=("SAME", "same"),
            embedding_dynamic_padding=(True,),
            hidden_act=("relu",),
            width_factor=(1,),
            output_stride=(32,),
        )
        described.require(
            hidden_act=("gelu",), qkv_bias=(True,), neck_ignore_stages=([0, 1],), patch_size=(16,)
        )
        fields["num_groups"] = resnet.value("num_groups", int, 32)
        fields["num_heads"] = described.value("num_attention_heads", int, 12)
        taps = described.integers("backbone_out_indices", (2, 5, 8, 11))[2:]
        eps = described.value("layer_norm_eps", float, eps)
    return Config(**fields, taps=taps, layer_norm_eps=eps)


def described(config: Config) -> dict[str, Any]:
    """The content of transformers' DPT `config.json` for the encoder.

    Raises:
        ValueError: for a number of stages or taps that transformers does not support.
    """
    if len(config.depths) != 3 or len(config.taps) != 2:
        raise ValueError(
            f"transformers' hybrid needs three stages and two taps, not depths {config.depths} and "
            f"taps {config.taps}"
        )
    resnet = {
        "architectures": ["BitBackbone"],
        "model_type": "bit",
        "layer_type": "bottleneck",
        "global_padding": "SAME",
        "embedding_dynamic_padding": True,
        "embedding_size": config.stem_features,
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "num_groups": config.num_groups,
        "out_features": ["stage1", "stage2", "stage3"],
    }
    return {
        **vit.described(config),
        "is_hybrid": True,
        "backbone_config": resnet,
        "backbone_featmap_shape": [1, config.widths[-1], config.grid, config.grid],
        "backbone_out_indices": [0, 1, *config.taps],
        "neck_ignore_stages": [0, 1],
    }


_UNDETERMINED = ("num_groups", "num_heads", "taps", "layer_norm_eps", "drop_path_rate", "remat")
LAYOUTS = {
    "timm": Layout(infer, rules, _UNDETERMINED),
    "transformers": Layout(infer_transformers, transformers_rules, _UNDETERMINED),
}
