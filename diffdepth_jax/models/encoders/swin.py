"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030), numerically equal to OpenMMLab's version.

That version (mmcv layout) is the one DiffusionDepth was trained with. It takes images of any size:

- an image whose sides are not multiples of the patch is padded with zeros at the bottom and right,
  and so is an odd map before it is merged;
- a map is padded to whole windows after its norm. The padded keys take part in attention; only
  the shift mask (-100) separates parts of windows that wrap around the border;
- a map smaller than one window is padded and shifted too.

The versions of Microsoft, timm and Hugging Face are built for one image size, here `image_size`: a
stage whose map at that size fits into one window uses a window of the map's size and no shift.
Images of other sizes are padded as above. MiDaS uses such a Swin and takes the stage outputs
without norms (`output_norms`).

Patch merging uses Microsoft's layout, which timm and Hugging Face share: the 4 C channels are the
neighbours (row, column) (0, 0), (1, 0), (0, 1), (1, 1) concatenated, C channels each. mmcv's
`unfold` interleaves instead: channel c of neighbour k, counted row by row, is c * 4 + k;
`MERGE_NORM` and `MERGE_REDUCTION` convert its weights.
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models.encoders.encoder import ForImageSize
from diffdepth_jax.models.layers import (
    Conv,
    DropPath,
    LayerNorm,
    Mlp,
    TransformerLinear,
    drop_path_rates,
    transformer_init,
)
from diffdepth_jax.models.tables import Layout, conv_rules, count, linear_rules, norm_rules, side
from diffdepth_jax.models.transformer import recomputed
from diffdepth_jax.ops.image import size_of
from diffdepth_jax.ops.remat import Remat
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Constant, Derived, Fresh, Row, Rule, Rules, Skip, Transform


@dataclass(frozen=True)
class Config(ForImageSize):
    """A Swin Transformer encoder.

    Attributes:
        embed_dim: channels of the first stage; every later stage doubles them.
        depths: blocks of each stage; every second block uses shifted windows.
        num_heads: attention heads of each stage.
        window_size: side of the attention windows, in tokens.
        patch_size: side of a token of the first stage, in pixels.
        mlp_ratio: ratio of hidden to outer channels of the feed-forward part.
        drop_path_rate: rate of the last block; rates increase linearly from 0.
        remat: which parts of a block are recomputed in the backward pass, see `ops.remat`.
        image_size: side in pixels of the square images whose maps limit the window sizes; None if
            all stages use full windows.
        output_norms: whether each stage's output is normalised.
    """

    name: Literal["swin"] = "swin"
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    patch_size: int = 4
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.1
    remat: Remat = "none"
    image_size: int | None = None
    output_norms: bool = True

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths {self.depths} and num_heads {self.num_heads} must have one entry per stage"
            )
        if min(*self.depths, *self.num_heads, self.embed_dim, self.patch_size) < 1:
            raise ValueError(
                f"depths, num_heads, embed_dim and patch_size must be positive: {self}"
            )
        for channels, heads in zip(self.channels, self.num_heads, strict=True):
            if channels % heads:
                raise ValueError(
                    f"a stage's {channels} channels cannot be divided into {heads} heads"
                )
        if self.window_size < 2:
            raise ValueError(f"window_size is {self.window_size}; it must be at least 2")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}; it must be in [0, 1)")
        if self.image_size is not None:
            coarsest = self.reductions[-1]
            if self.image_size < 1 or self.image_size % coarsest:
                raise ValueError(
                    f"image_size is {self.image_size}; it must be a multiple of the coarsest "
                    f"map's stride, {coarsest}"
                )

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))

    @property
    def reductions(self) -> tuple[int, ...]:
        return tuple(self.patch_size * 2**stage for stage in range(len(self.depths)))

    @property
    def fixed_size(self) -> bool:
        return self.image_size is not None

    def windows(self, stage: int) -> tuple[int, int]:
        """A stage's window size, and the shift of every second block, in tokens."""
        if self.image_size is not None:
            side = self.image_size // self.reductions[stage]
            if side <= self.window_size:
                return side, 0
        return self.window_size, self.window_size // 2

    def shift(self, stage: int, block: int) -> int:
        """Window shift of a block: its stage's shift for every second block, else 0."""
        return self.windows(stage)[1] if block % 2 else 0


_BASE = Config(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
_LARGE = Config(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))

VARIANTS = {
    "tiny": Config(),
    "small": Config(depths=(2, 2, 18, 2)),
    "base": _BASE,
    "large": _LARGE,
    "base_window12": replace(_BASE, window_size=12),
    "large_window12": replace(_LARGE, window_size=12),
    # MiDaS's variant.
    "large_384": replace(_LARGE, window_size=12, image_size=384, output_norms=False),
}


class Encoder(nn.Module):
    """Image to features at strides 4, 8, 16, 32 (sizes rounded up), normalised by default."""

    config: Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        config, dtype = self.config, self.dtype
        block_class, merging_class = self._classes()
        block_class = recomputed(block_class, config.remat)
        tokens = Conv(
            config.embed_dim,
            config.patch_size,
            config.patch_size,
            padding=0,
            dtype=dtype,
            name="patch_embed",
        )(pad_with_zeros(image, config.patch_size))
        tokens = LayerNorm(name="patch_norm")(tokens)
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        outputs = []
        for stage, heads in enumerate(config.num_heads):
            if stage > 0:
                tokens = merging_class(dtype, name=f"stage{stage - 1}_merge")(tokens)
            for block, rate in enumerate(rates[stage]):
                tokens = block_class(
                    num_heads=heads,
                    window_size=config.windows(stage)[0],
                    shift=config.shift(stage, block),
                    hidden_features=int(config.mlp_ratio * config.channels[stage]),
                    drop_path_rate=rate,
                    dtype=dtype,
                    name=f"stage{stage}_block{block}",
                    **self._block_options(stage),
                )(tokens, train)
            outputs.append(
                LayerNorm(name=f"norm{stage}")(tokens) if config.output_norms else tokens
            )
        return tuple(outputs)

    def _classes(self) -> tuple[type[nn.Module], type[nn.Module]]:
        """Classes of the blocks and of the merging between stages."""
        return Block, PatchMerging

    def _block_options(self, stage: int) -> dict[str, Any]:
        """Extra arguments of a stage's blocks, besides those that all Swin Transformers share."""
        del stage
        return {}


class Block(nn.Module):
    """Window attention and a feed-forward part, each with a pre-norm and a shortcut."""

    num_heads: int
    window_size: int
    shift: int
    hidden_features: int
    drop_path_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        drop_path = DropPath(self.drop_path_rate)
        attention = WindowAttention(
            self.num_heads, self.window_size, self.shift, self.dtype, name="attention"
        )
        mlp = Mlp(self.hidden_features, self.dtype, name="mlp")
        tokens += drop_path(attention(LayerNorm(name="norm1")(tokens)), train)
        return tokens + drop_path(mlp(LayerNorm(name="norm2")(tokens)), train)


class WindowAttention(nn.Module):
    """Self-attention within windows of the map rolled up and left by `shift` tokens."""

    num_heads: int
    window_size: int
    shift: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels, size = tokens.shape[-1], self.window_size
        table = self.param(
            "relative_position_bias", transformer_init, ((2 * size - 1) ** 2, self.num_heads)
        )
        windows, apart = to_windows(tokens, size, self.shift)
        qkv = TransformerLinear(3 * channels, dtype=self.dtype, name="qkv")(windows)
        query, key, value = jnp.moveaxis(
            qkv.reshape(*windows.shape[:3], 3, self.num_heads, -1), 3, 0
        )
        query *= (channels // self.num_heads) ** -0.5
        logits = jnp.einsum("bwqhd,bwkhd->bwhqk", query, key).astype(jnp.float32)
        logits += jnp.moveaxis(table[relative_position_index(size)], 2, 0)[None, None]
        if apart is not None:
            logits -= jnp.where(apart, 100.0, 0.0)[None, :, None]
        weights = jax.nn.softmax(logits).astype(self.dtype)
        windows = jnp.einsum("bwhqk,bwkhd->bwqhd", weights, value).reshape(windows.shape)
        windows = TransformerLinear(channels, dtype=self.dtype, name="projection")(windows)
        return from_windows(windows, size_of(tokens), self.shift)


class PatchMerging(nn.Module):
    """Merges 2x2 tokens into one with twice the channels, in the layout described above."""

    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 2*c"]:
        features = 2 * tokens.shape[-1]
        merged = LayerNorm(name="norm")(merge_neighbours(tokens))
        return TransformerLinear(features, use_bias=False, dtype=self.dtype, name="reduction")(
            merged
        )


def merge_neighbours(tokens: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 4*c"]:
    """Concatenates the channels of every 2x2 tokens, in the layout described at the top."""
    tokens = pad_with_zeros(tokens, 2)
    batch, height, width, channels = tokens.shape
    return (
        tokens.reshape(batch, height // 2, 2, width // 2, 2, channels)
        .transpose(0, 1, 3, 4, 2, 5)
        .reshape(batch, height // 2, width // 2, 4 * channels)
    )


def to_windows(
    tokens: Float[Array, "b h w c"], window_size: int, shift: int
) -> tuple[Float[Array, "b windows n c"], Bool[np.ndarray, "windows n n"] | None]:
    """Pads a map to whole windows, rolls it up and left by `shift` tokens, and splits it.

    Returns:
        Windows of n = window_size ** 2 tokens, and the pairs of tokens that must not attend to each
        other, see `shift_mask`; None without a shift.
    """
    tokens = pad_with_zeros(tokens, window_size)
    if not shift:
        return _split(tokens, window_size), None
    apart = shift_mask(size_of(tokens), window_size, shift)
    return _split(jnp.roll(tokens, (-shift, -shift), (1, 2)), window_size), apart


def from_windows(
    windows: Float[Array, "b windows n c"], size: tuple[int, int], shift: int
) -> Float[Array, "b h w c"]:
    """The inverse of `to_windows`, for a map of (height, width) = size."""
    batch, _, area, channels = windows.shape
    side = math.isqrt(area)
    height, width = (-(-length // side) * side for length in size)
    windows = windows.reshape(batch, height // side, width // side, side, side, channels)
    tokens = windows.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
    if shift:
        tokens = jnp.roll(tokens, (shift, shift), (1, 2))
    return tokens[:, : size[0], : size[1]]


@functools.cache  # shared by all blocks with this window size
def relative_position_index(window_size: int) -> Int[np.ndarray, "n n"]:
    """Row of the bias table for each query and key of a window, n = window_size ** 2.

    The offset (dy, dx) = query - key is stored in row (dy + s - 1) * (2 s - 1) + dx + s - 1.
    """
    y, x = np.divmod(np.arange(window_size**2), window_size)
    rows = y[:, None] - y[None, :] + window_size - 1
    columns = x[:, None] - x[None, :] + window_size - 1
    index = rows * (2 * window_size - 1) + columns
    index.setflags(write=False)
    return index


def shift_mask(
    size: tuple[int, int], window_size: int, shift: int
) -> Bool[np.ndarray, "windows n n"]:
    """Pairs of tokens that share a window only because rolling wrapped the map around.

    Args:
        size: (height, width) of the map, multiples of the window.
    """

    def region(side: int) -> np.ndarray:
        return np.digitize(np.arange(side), (side - window_size, side - shift))

    regions = 3 * region(size[0])[:, None] + region(size[1])[None, :]
    regions = _split(regions[None, :, :, None], window_size)[0, :, :, 0]
    return regions[:, :, None] != regions[:, None, :]


def pad_with_zeros(tokens: Array, multiple: int) -> Array:
    """Pads with zeros at the bottom and right to the next multiples."""
    bottom, right = (-side % multiple for side in tokens.shape[1:3])
    return jnp.pad(tokens, ((0, 0), (0, bottom), (0, right), (0, 0)))


def _split(tokens: Any, size: int) -> Any:
    """[b, h, w, c] to [b, windows, size * size, c]; NumPy or JAX."""
    batch, height, width, channels = tokens.shape
    tokens = tokens.reshape(batch, height // size, size, width // size, size, channels)
    return tokens.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size, channels)


_ROW_TO_COLUMN_MAJOR = [0, 2, 1, 3]  # order of 2x2 neighbours; its own inverse


def _norm_from_unfold(weight: np.ndarray) -> np.ndarray:
    return weight.reshape(-1, 4)[:, _ROW_TO_COLUMN_MAJOR].transpose(1, 0).reshape(-1)


def _norm_to_unfold(scale: np.ndarray) -> np.ndarray:
    return scale.reshape(4, -1)[_ROW_TO_COLUMN_MAJOR].transpose(1, 0).reshape(-1)


def _reduction_from_unfold(weight: np.ndarray) -> np.ndarray:
    return np.stack([_norm_from_unfold(row) for row in weight], axis=-1)


def _reduction_to_unfold(kernel: np.ndarray) -> np.ndarray:
    return np.stack([_norm_to_unfold(column) for column in kernel.transpose(1, 0)])


MERGE_NORM = Transform(_norm_from_unfold, _norm_to_unfold)
MERGE_REDUCTION = Transform(_reduction_from_unfold, _reduction_to_unfold)


# For entries that are not read: the indices that they hold follow from the table's length.
_INDEX = "computed from the window size"
POSITION_INDEX = Transform(
    lambda index: index, lambda table: relative_position_index(_window_size(table.shape))
)


def _window_size(table: tuple[int, ...]) -> int:
    """Window size of a position bias table, by its shape."""
    return (math.isqrt(table[0]) + 1) // 2


def rules(config: Config) -> Rules:
    """The conversion table for DiffusionDepth's (mmcv's) names; the same for every config."""
    del config
    block, here = r"stages\.(\d+)\.blocks\.(\d+)", r"stage\1_block\2"
    merge, there = r"stages\.(\d+)\.downsample", r"stage\1_merge"
    attention = rf"{block}\.attn\.w_msa"
    return (
        *conv_rules(r"patch_embed\.projection", "patch_embed"),
        *norm_rules(r"patch_embed\.norm", "patch_norm"),
        *norm_rules(rf"{block}\.(norm\d)", rf"{here}/\3"),
        *linear_rules(rf"{attention}\.qkv", f"{here}/attention/qkv"),
        *linear_rules(rf"{attention}\.proj", f"{here}/attention/projection"),
        Rule(
            rf"{attention}\.relative_position_bias_table",
            f"params/{here}/attention/relative_position_bias",
        ),
        Derived(
            rf"{attention}\.relative_position_index",
            _INDEX,
            f"params/{here}/attention/relative_position_bias",
            POSITION_INDEX,
        ),
        *linear_rules(rf"{block}\.ffn\.layers\.0\.0", f"{here}/mlp/fc1"),
        *linear_rules(rf"{block}\.ffn\.layers\.1", f"{here}/mlp/fc2"),
        Rule(rf"{merge}\.norm\.weight", f"params/{there}/norm/scale", MERGE_NORM),
        Rule(rf"{merge}\.norm\.bias", f"params/{there}/norm/bias", MERGE_NORM),
        Rule(rf"{merge}\.reduction\.weight", f"params/{there}/reduction/kernel", MERGE_REDUCTION),
        *norm_rules(r"norm(\d+)", r"norm\1"),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    The fields in `UNDETERMINED` cannot be inferred from weights and get their defaults.

    Raises:
        ValueError: if they are of this family, but an entry that determines the architecture is
            missing or has an unexpected shape.
    """
    return _infer(
        shapes,
        "patch_embed.projection",
        "stages",
        "attn.w_msa.relative_position_bias_table",
        "ffn.layers.0.0",
    )


def _infer(
    shapes: Mapping[str, tuple[int, ...]], patch_embed: str, stages: str, table: str, hidden: str
) -> Config | None:
    """`infer` for a layout with these names; the last two are relative to a block's name."""
    found = structure(shapes, patch_embed, stages, (table, 1), hidden)
    if found is None:
        return None
    return Config(**found, window_size=_window_size(shapes[f"{stages}.0.blocks.0.{table}"]))


def structure(
    shapes: Mapping[str, tuple[int, ...]],
    patch_embed: str,
    stages: str,
    by_head: tuple[str, int],
    hidden: str,
) -> dict[str, Any] | None:
    """The config fields of Swin or Swin V2 that shapes determine regardless of the windows.

    Args:
        shapes: shapes of the weights by name.
        patch_embed: name of the patch embedding convolution.
        stages: name prefix before a stage's number.
        by_head: an entry, relative to a block's name, with one element per head along one axis, and
            that axis.
        hidden: first layer of the feed-forward part, relative to a block's name.

    Returns:
        None if the first block has no entry `by_head`.

    Raises:
        ValueError: if it has one, but another entry is missing or has an unexpected shape.
    """
    first, (entry, axis) = f"{stages}.{{}}.blocks.0", by_head
    if f"{first.format(0)}.{entry}" not in shapes:
        return None
    numbers = range(count(shapes, rf"{re.escape(stages)}\.(\d+)\.blocks\."))
    embed_dim = side(shapes, f"{patch_embed}.weight")
    return {
        "embed_dim": embed_dim,
        "depths": tuple(
            count(shapes, rf"{re.escape(stages)}\.{stage}\.blocks\.(\d+)\.") for stage in numbers
        ),
        "num_heads": tuple(
            side(shapes, f"{first.format(stage)}.{entry}", axis) for stage in numbers
        ),
        "patch_size": side(shapes, f"{patch_embed}.weight", 3),
        "mlp_ratio": side(shapes, f"{first.format(0)}.{hidden}.weight") / embed_dim,
    }


# ---- other sources of weights --------------------------------------------------------------------
#
# These are all classifiers, with a single norm after the last stage instead of one per stage. On
# maps of whole windows they compute the same as this file. Otherwise timm rolls a map before
# padding it, and transformers and timm shrink windows larger than the map, as `image_size` does.

NO_NORMS = Fresh(r"params/norm\d+/(scale|bias)", "a classifier has no norms of the stages' outputs")
_FINAL_NORM, _CLASSIFIER = "the norm before the classifier", "the classifier"
_MASK = "the shift's mask, computed from the map's size"
_TIMM_NAMES = "patch_embed.proj", "layers", "attn.relative_position_bias_table", "mlp.fc1"
TIMM_BLOCK, BLOCK = r"layers\.(\d+)\.blocks\.(\d+)", r"stage\1_block\2"


def timm_rows(config: Config, first_merge: int) -> Rules:
    """The rules that Swin and Swin V2 share, for timm's and Microsoft's names.

    Args:
        config: the config of either.
        first_merge: number of the stage that contains the first merging.
    """
    return (
        *conv_rules(r"patch_embed\.proj", "patch_embed"),
        *norm_rules(r"patch_embed\.norm", "patch_norm"),
        *norm_rules(rf"{TIMM_BLOCK}\.(norm\d)", rf"{BLOCK}/\3"),
        *linear_rules(rf"{TIMM_BLOCK}\.attn\.proj", f"{BLOCK}/attention/projection"),
        *linear_rules(rf"{TIMM_BLOCK}\.mlp\.(fc\d)", rf"{BLOCK}/mlp/\3"),
        *merge_rules(config, "layers", first_merge),
    )


def classifier_skips() -> Rules:
    """The entries of a timm classifier, since 0.9, that an encoder does not have."""
    return (
        Skip(rf"{TIMM_BLOCK}\.attn\.relative_(position_index|coords_table)", _INDEX),
        Skip(rf"{TIMM_BLOCK}\.attn_mask", _MASK),
        Skip(r"norm\..+", _FINAL_NORM),
        Skip(r"head\..+", _CLASSIFIER),
        NO_NORMS,
    )


def classifier_constants(config: Config) -> Rules:
    """The entries of a classifier with Microsoft's names that an encoder does not have.

    They are never read, but MiDaS's strict loading needs them all, so exports include them: the
    shift masks, and timm's last norm and ImageNet head.
    """
    rows: list[Row] = [NO_NORMS]
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            name = rf"layers\.{stage}\.blocks\.{block}\.attn_mask"
            if config.shift(stage, block):
                mask = functools.partial(_attention_mask, config, stage)
                rows.append(Constant(name, _MASK, mask))
            else:  # for weights trained with other window sizes
                rows.append(Skip(name, _MASK))
    channels, classes = config.channels[-1], 1000
    for name, shape, value, reason in (
        ("norm.weight", (channels,), 1.0, _FINAL_NORM),
        ("norm.bias", (channels,), 0.0, _FINAL_NORM),
        ("head.weight", (classes, channels), 0.0, _CLASSIFIER),
        ("head.bias", (classes,), 0.0, _CLASSIFIER),
    ):
        filled = functools.partial(np.full, shape, value, np.float32)
        rows.append(Constant(re.escape(name), reason, filled))
    return tuple(rows)


def _attention_mask(config: Config, stage: int) -> np.ndarray:
    """The shift mask as timm stores it: float32 [windows, n, n], 0 and -100."""
    if config.image_size is None:
        raise WeightsError(
            "this layout stores shift masks, whose size depends on the image, but the encoder's "
            "image_size is None: set it"
        )
    size, shift = config.windows(stage)
    side = -(-config.image_size // config.reductions[stage] // size) * size
    return np.where(shift_mask((side, side), size, shift), np.float32(-100), np.float32(0))


def sizes_of_masks(
    shapes: Mapping[str, tuple[int, ...]], patch_size: int
) -> tuple[int, int] | None:
    """Window size in tokens and image side in pixels that the stored shift masks belong to; None if
    there are none."""
    for name, shape in shapes.items():
        if (match := re.fullmatch(rf"{TIMM_BLOCK}\.attn_mask", name)) and len(shape) == 3:
            window, windows = math.isqrt(shape[1]), math.isqrt(shape[0])
            return window, window * windows * patch_size * 2 ** int(match[1])
    return None


def _microsoft_rules(config: Config) -> Rules:
    """microsoft/Swin-Transformer, and timm before 0.9: merging at the end of a stage.

    Output norms, if any, have mmcv's names.
    """
    return (
        *_weight_rules(config, first_merge=0),
        Derived(
            rf"{TIMM_BLOCK}\.attn\.relative_position_index",
            _INDEX,
            f"params/{BLOCK}/attention/relative_position_bias",
            POSITION_INDEX,
        ),
        *classifier_constants(config),
        *norm_rules(r"norm(\d+)", r"norm\1"),
    )


def _timm_rules(config: Config) -> Rules:
    """timm since 0.9: merging at the beginning of a stage."""
    return (*_weight_rules(config, first_merge=1), *classifier_skips())


def _weight_rules(config: Config, first_merge: int) -> Rules:
    return (
        *timm_rows(config, first_merge),
        *linear_rules(rf"{TIMM_BLOCK}\.attn\.qkv", f"{BLOCK}/attention/qkv"),
        Rule(
            rf"{TIMM_BLOCK}\.attn\.relative_position_bias_table",
            f"params/{BLOCK}/attention/relative_position_bias",
        ),
    )


def _transformers_rules(config: Config) -> Rules:
    """Hugging Face's transformers: names in files, and in modules since version 5."""
    block, here = r"encoder\.layers\.(\d+)\.blocks\.(\d+)", r"stage\1_block\2"
    attention = rf"{block}\.attention"
    rows: tuple = ()
    for index, name in enumerate(("query", "key", "value")):
        for row in linear_rules(
            rf"{attention}\.(?:self\.{name}|{name[0]}_proj)", f"{here}/attention/qkv"
        ):
            rows += (replace(row, part=(index, 3)),)
    return (
        *conv_rules(r"embeddings\.patch_embeddings\.projection", "patch_embed"),
        *norm_rules(r"embeddings\.norm", "patch_norm"),
        Skip(r"embeddings\.mask_token", "used only in masked-image pretraining"),
        *norm_rules(rf"{block}\.layernorm_before", f"{here}/norm1"),
        *norm_rules(rf"{block}\.layernorm_after", f"{here}/norm2"),
        *rows,
        *linear_rules(rf"{attention}\.(?:output\.dense|o_proj)", f"{here}/attention/projection"),
        Rule(
            rf"{attention}\.(?:self|relative_position_bias)\.relative_position_bias_table",
            f"params/{here}/attention/relative_position_bias",
        ),
        Skip(rf"{attention}\.(?:self|relative_position_bias)\.relative_position_index", _INDEX),
        *linear_rules(rf"{block}\.(?:intermediate\.dense|mlp\.fc1)", f"{here}/mlp/fc1"),
        *linear_rules(rf"{block}\.(?:output\.dense|mlp\.fc2)", f"{here}/mlp/fc2"),
        *merge_rules(config, r"encoder\.layers", 0),
        Skip(r"layernorm\..+", _FINAL_NORM),
        NO_NORMS,
    )


def _mmpretrain_rules(config: Config) -> Rules:
    """mmcv's layout for a classifier: only the last stage's output has a norm."""
    last = len(config.depths) - 1
    return (*rules(config), replace(NO_NORMS, pattern=rf"params/norm(?!{last}/)\d+/(scale|bias)"))


def merge_rules(config: Config, stages: str, first: int) -> Rules:
    """Rules for patch merging in this file's layout; `first` is the stage of the first one."""
    rows: tuple = ()
    for stage in range(len(config.depths) - 1):
        merge, there = rf"{stages}\.{stage + first}\.downsample", f"stage{stage}_merge"
        rows += norm_rules(rf"{merge}\.norm", f"{there}/norm")
        rows += linear_rules(rf"{merge}\.reduction", f"{there}/reduction")
    return rows


def _infer_microsoft(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """Without a shift mask to show it, the image size is the one whose coarsest map is a single
    window, as in all published models."""
    config = None if merges_first(shapes) else _infer(shapes, *_TIMM_NAMES)
    if config is None:
        return None
    sizes = sizes_of_masks(shapes, config.patch_size)
    image_size = sizes[1] if sizes else config.window_size * config.reductions[-1]
    return replace(config, image_size=image_size, output_norms="norm0.weight" in shapes)


def _infer_timm(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    return _infer(shapes, *_TIMM_NAMES) if merges_first(shapes) else None


def merges_first(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether merging happens at the beginning of a stage, as in timm since 0.9."""
    merges = [f"layers.{stage}.downsample.reduction.weight" in shapes for stage in (0, 1)]
    return merges == [False, True]


def _infer_transformers(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    start = "embeddings.patch_embeddings.projection", "encoder.layers"
    table = "relative_position_bias_table"
    return _infer(shapes, *start, f"attention.self.{table}", "intermediate.dense") or _infer(
        shapes, *start, f"attention.relative_position_bias.{table}", "mlp.fc1"
    )


def _infer_mmcv(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    return infer(shapes) if "norm0.weight" in shapes else None


def _infer_mmpretrain(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    return infer(shapes) if "norm0.weight" not in shapes else None


UNDETERMINED = ("drop_path_rate", "remat", "image_size", "output_norms")
LAYOUTS = {
    "microsoft": Layout(_infer_microsoft, _microsoft_rules, UNDETERMINED),
    "timm": Layout(_infer_timm, _timm_rules, UNDETERMINED),
    "transformers": Layout(_infer_transformers, _transformers_rules, UNDETERMINED),
    "mmcv": Layout(_infer_mmcv, rules, UNDETERMINED),
    "mmpretrain": Layout(_infer_mmpretrain, _mmpretrain_rules, UNDETERMINED),
}
