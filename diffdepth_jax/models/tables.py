"""Rows that the weight tables of several models share, and queries on a state dict's names.

Keys are patterns of PyTorch module names, without the final `.weight`; paths are templates of our
modules, without the collection. Both may carry groups: `conv_rules(r"layer(\\d)", r"stage\\1")`.
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
    """How one source names the weights of a family of encoders.

    Attributes:
        infer: from names and shapes to the config; None if they are not in this layout.
        rules: a config's table.
        untold: fields of the config that weights do not determine.
    """

    infer: Callable[[Mapping[str, tuple[int, ...]]], Any]
    rules: Callable[[Any], Rules]
    untold: tuple[str, ...] = ()


def conv_rules(key: str, path: str) -> tuple[Rule, ...]:
    """Rows of a `layers.Conv`, with or without a bias."""
    return _kernel_rules(key, path, conv)


def linear_rules(key: str, path: str) -> tuple[Rule, ...]:
    """Rows of a `layers.Linear`, with or without a bias."""
    return _kernel_rules(key, path, linear)


def norm_rules(key: str, path: str) -> tuple[Rule, ...]:
    """Rows of a `layers.LayerNorm` or `layers.GroupNorm`."""
    return (
        Rule(rf"{key}\.weight", f"params/{path}/scale"),
        Rule(rf"{key}\.bias", f"params/{path}/bias"),
    )


def batch_norm_rules(key: str, path: str) -> tuple[Rule | Skip, ...]:
    """Rows of a `layers.BatchNorm`."""
    return (
        *norm_rules(key, path),
        Rule(rf"{key}\.running_mean", f"batch_stats/{path}/mean"),
        Rule(rf"{key}\.running_var", f"batch_stats/{path}/var"),
        Skip(rf"{key}\.num_batches_tracked", "a counter that the forward pass does not read"),
    )


def count(names: Iterable[str], pattern: str) -> int:
    """How many values the first group of `pattern` takes among the names that begin with it."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def side(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int = 0) -> int:
    """Length of one axis of an entry.

    Raises:
        ValueError: if there is no such entry, or it has no such axis.
    """
    if name not in shapes:
        raise ValueError(f"the weights lack {name!r}, which determines the architecture")
    if axis >= len(shapes[name]):
        raise ValueError(f"{name!r} of shape {shapes[name]} should have more than {axis} axes")
    return shapes[name][axis]


def width(shapes: Mapping[str, tuple[int, ...]], pattern: str, axis: int = 0) -> int | None:
    """The most common length of an axis among the entries that match; None if there are none.

    A single entry of a wrong shape is then reported as such when the weights are converted.
    """
    lengths = Counter(
        shape[axis]
        for name, shape in shapes.items()
        if len(shape) > axis and re.fullmatch(pattern, name)
    )
    return lengths.most_common(1)[0][0] if lengths else None


def below(shapes: Mapping[str, tuple[int, ...]], root: str) -> dict[str, tuple[int, ...]]:
    """The entries whose names begin with `root`, without it."""
    return {
        name.removeprefix(root): tuple(shape)
        for name, shape in shapes.items()
        if name.startswith(root)
    }


def _kernel_rules(key: str, path: str, transform) -> tuple[Rule, ...]:
    return (
        Rule(rf"{key}\.weight", f"params/{path}/kernel", transform),
        Rule(rf"{key}\.bias", f"params/{path}/bias"),
    )
