"""Conversion rules shared by several models, and queries on a state dict's names.

Keys are patterns of PyTorch module names without the final `.weight`; paths are templates of paths
in this package without the collection. Both may contain groups: `conv_rules(r"layer(\\d)",
r"stage\\1")`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffdepth_jax.weights.rules import Rule, Rules, Skip, Transform, conv, linear

# A class token [1, 1, c] to [c], and position embeddings [1, n, c] to [n, c].
class_token = Transform(
    lambda token: token.reshape(token.shape[-1:]), lambda token: token[None, None]
)
positions = Transform(lambda table: table.reshape(table.shape[-2:]), lambda table: table[None])


@dataclass(frozen=True)
class Layout:
    """How one source of weights names them, for a family of encoders.

    Attributes:
        infer: returns the config for names and shapes; None if they are in a different layout.
        rules: returns the conversion table for a config.
        undetermined: config fields that weights do not determine.
    """

    infer: Callable[[Mapping[str, tuple[int, ...]]], Any]
    rules: Callable[[Any], Rules]
    undetermined: tuple[str, ...] = ()


def conv_rules(key: str, path: str) -> tuple[Rule, ...]:
    """Rules for a `layers.Conv`, with or without a bias."""
    return _kernel_rules(key, path, conv)


def linear_rules(key: str, path: str) -> tuple[Rule, ...]:
    """Rules for a `layers.Linear`, with or without a bias."""
    return _kernel_rules(key, path, linear)


def norm_rules(key: str, path: str) -> tuple[Rule, ...]:
    """Rules for a `layers.LayerNorm` or `layers.GroupNorm`."""
    return (
        Rule(rf"{key}\.weight", f"params/{path}/scale"),
        Rule(rf"{key}\.bias", f"params/{path}/bias"),
    )


def batch_norm_rules(key: str, path: str) -> tuple[Rule | Skip, ...]:
    """Rules for a `layers.BatchNorm`."""
    return (
        *norm_rules(key, path),
        Rule(rf"{key}\.running_mean", f"batch_stats/{path}/mean"),
        Rule(rf"{key}\.running_var", f"batch_stats/{path}/var"),
        Skip(rf"{key}\.num_batches_tracked", "a counter that the forward pass does not read"),
    )


def count(names: Iterable[str], pattern: str) -> int:
    """Number of distinct values of the first group of `pattern` among names starting with it."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def side(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int = 0) -> int:
    """Length of one axis of an entry.

    Raises:
        ValueError: if there is no such entry, or it has too few axes.
    """
    if name not in shapes:
        raise ValueError(f"the weights lack {name!r}, which determines the architecture")
    if axis >= len(shapes[name]):
        raise ValueError(f"{name!r} has shape {shapes[name]}; it must have more than {axis} axes")
    return shapes[name][axis]


def width(shapes: Mapping[str, tuple[int, ...]], pattern: str, axis: int = 0) -> int | None:
    """The most common length of an axis among matching entries; None if there are none.

    So a single entry of the wrong shape is reported as such when the weights are converted.
    """
    lengths = Counter(
        shape[axis]
        for name, shape in shapes.items()
        if len(shape) > axis and re.fullmatch(pattern, name)
    )
    return lengths.most_common(1)[0][0] if lengths else None


def below(shapes: Mapping[str, tuple[int, ...]], root: str) -> dict[str, tuple[int, ...]]:
    """The entries whose names start with `root`, with it removed."""
    return {
        name.removeprefix(root): tuple(shape)
        for name, shape in shapes.items()
        if name.startswith(root)
    }


def _kernel_rules(key: str, path: str, transform: Transform) -> tuple[Rule, ...]:
    return (
        Rule(rf"{key}\.weight", f"params/{path}/kernel", transform),
        Rule(rf"{key}\.bias", f"params/{path}/bias"),
    )
