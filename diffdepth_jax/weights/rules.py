r"""Tables that carry a PyTorch state dict to a tree of variables and back.

A model lists, beside its modules, one `Rule` per kind of entry and one `Skip` per kind of entry it
deliberately leaves out::

    RULES = (
        Rule(r"layers\.(\d+)\.conv1\.weight", r"params/stage\1/conv1/kernel", conv),
        Rule(r"layers\.(\d+)\.bn1\.running_mean", r"batch_stats/stage\1/bn1/mean"),
        Skip(r".*\.num_batches_tracked", "a counter that no layer reads"),
    )

`convert` then demands the whole truth: every key is claimed by exactly one entry of the table and
every leaf is filled exactly once, with equal shapes. It collects all faults into one error, for a
checkpoint that fits "almost" is the one that silently predicts nonsense.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_SHOWN_PER_KIND = 8


class WeightsError(ValueError):
    """Weights that cannot be read, or that do not fit the model they were meant for."""


@dataclass(frozen=True)
class Transform:
    """A change of array layout: `forward` from PyTorch's to ours, `inverse` back; both NumPy."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


identity = Transform(lambda array: array, lambda array: array)
"""No change: biases, norms, running statistics, embeddings."""

conv = Transform(
    lambda weight: weight.transpose(2, 3, 1, 0), lambda kernel: kernel.transpose(3, 2, 0, 1)
)
"""2-D convolution: OIHW to HWIO. Also right for grouped and depthwise ones (O 1 H W to H W 1 O)."""

conv_transpose = Transform(
    lambda weight: weight.transpose(2, 3, 0, 1)[::-1, ::-1],
    lambda kernel: kernel.transpose(2, 3, 0, 1)[:, :, ::-1, ::-1],
)
"""Transposed 2-D convolution: PyTorch's (in, out, H, W) to HWIO **flipped in H and W**.

With the flip done once here, `torch.nn.ConvTranspose2d(stride=s, padding=p)` of kernel size k is
the ordinary correlation

    lax.conv_general_dilated(inputs, kernel, window_strides=(1, 1), lhs_dilation=(s, s),
                             padding=[(k - 1 - p, k - 1 - p + output_padding)] * 2,
                             dimension_numbers=("NHWC", "HWIO", "NHWC"))
"""

linear = Transform(lambda weight: weight.transpose(1, 0), lambda kernel: kernel.transpose(1, 0))
"""Dense layer: (out, in) to (in, out)."""


@dataclass(frozen=True)
class Rule:
    r"""Where the entries whose name fully matches a pattern go.

    Attributes:
        pattern: regular expression for the whole PyTorch key.
        path: '/'-joined path of the leaf, collection first ("params/stage\1/conv1/kernel"); groups
            of the pattern are written \1 or \g<name>.
        transform: the layout change, `identity` unless given.
    """

    pattern: str
    path: str
    transform: Transform = identity


@dataclass(frozen=True)
class Skip:
    """Entries that no leaf wants, and why."""

    pattern: str
    reason: str


Rules = Sequence[Rule | Skip]


def prefix(rules: Rules, key_prefix: str, path_prefix: str = "") -> tuple[Rule | Skip, ...]:
    """Re-roots a table: `prefix(encoder_rules, "depth_backbone.", "encoder")`.

    Args:
        rules: a table relative to a submodule.
        key_prefix: literal text before each key, with its final dot.
        path_prefix: '/'-joined modules put between the collection and the rest of each path.
    """

    def rerooted(entry: Rule | Skip) -> Rule | Skip:
        pattern = f"{re.escape(key_prefix)}(?:{entry.pattern})"
        if isinstance(entry, Skip) or not path_prefix:
            return replace(entry, pattern=pattern)
        collection, _, rest = entry.path.partition("/")
        return replace(entry, pattern=pattern, path=f"{collection}/{path_prefix}/{rest}")

    return tuple(rerooted(entry) for entry in rules)


def convert(
    state_dict: Mapping[str, np.ndarray], rules: Rules, expected: Mapping[str, Any]
) -> dict[str, Any]:
    """Carries a state dict to variables.

    Args:
        state_dict: PyTorch keys to arrays.
        rules: the model's table.
        expected: nested mapping of collections whose leaves have `shape` and `dtype`, such as
            `jax.eval_shape(model.init, ...)`.

    Returns:
        Nested dicts of the structure of `expected` with NumPy leaves of the expected dtypes, which
        share no memory with `state_dict`.

    Raises:
        WeightsError: if a key has no rule or several, a leaf no key or several, or shapes differ;
            one error names all such faults.
    """
    leaves = _flatten(expected)
    targets, faults = _resolve(state_dict, rules)
    arrays: dict[str, np.ndarray] = {}
    for path, sources in targets.items():
        if path not in leaves:
            for key, _ in sources:
                faults.add("keys whose leaf the model does not have", f"{key} -> {path}")
            continue
        if len(sources) > 1:
            keys = ", ".join(key for key, _ in sources)
            faults.add("leaves filled more than once", f"{path} <- {keys}")
            continue
        (key, rule), leaf = sources[0], leaves[path]
        found, wanted = np.asarray(state_dict[key]), tuple(leaf.shape)
        try:
            array = rule.transform.forward(found)
        except ValueError as error:  # a transpose of an array of another rank
            faults.add("shapes that differ", f"{key} {found.shape} -> {path} {wanted}: {error}")
            continue
        if array.shape != wanted:
            shapes = f"{found.shape} gives {array.shape}, the model has {wanted}"
            faults.add("shapes that differ", f"{key} -> {path}: {shapes}")
        elif array.dtype.kind in "OSU":
            faults.add("arrays that are no numbers", f"{key}: {array.dtype}")
        else:
            arrays[path] = array.astype(leaf.dtype, order="C")
    for path in leaves.keys() - targets.keys():
        faults.add("leaves that no key fills", f"{path} {tuple(leaves[path].shape)}")
    faults.raise_if_any("The weights do not fit the model")
    return _unflatten_like(expected, arrays)


def export(
    variables: Mapping[str, Any], rules: Rules, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Carries variables back to a state dict: the inverse of `convert`.

    Args:
        variables: nested mapping of collections with array leaves.
        rules: the model's table.
        names: the PyTorch keys to produce, for a pattern cannot be run backwards; those that the
            table skips are left out of the result.

    Raises:
        WeightsError: if a name has no rule or several, points to no leaf, or a leaf has no name.
    """
    leaves = _flatten(variables)
    targets, faults = _resolve(names, rules)
    state_dict: dict[str, np.ndarray] = {}
    for path, sources in targets.items():
        for key, rule in sources:
            if path in leaves:
                array = rule.transform.inverse(np.asarray(leaves[path]))
                state_dict[key] = np.ascontiguousarray(array).reshape(array.shape)
            else:
                faults.add("names whose leaf the variables do not have", f"{key} -> {path}")
    for path in leaves.keys() - targets.keys():
        faults.add("leaves that no name asks for", path)
    faults.raise_if_any("The variables cannot be written under these names")
    return state_dict


def check(variables: Mapping[str, Any], expected: Mapping[str, Any], title: str) -> None:
    """Compares variables that are in our layout already with what a model expects.

    Args:
        variables: nested mapping of collections with array leaves.
        expected: as for `convert`.
        title: the first words of the error.

    Raises:
        WeightsError: if a leaf is missing, superfluous or of another shape; names all of them.
    """
    found, wanted, faults = _flatten(variables), _flatten(expected), _Faults()
    for path in wanted.keys() - found.keys():
        faults.add("leaves that are missing", f"{path} {tuple(wanted[path].shape)}")
    for path in found.keys() - wanted.keys():
        faults.add("leaves that the model does not have", path)
    for path in found.keys() & wanted.keys():
        shapes = tuple(found[path].shape), tuple(wanted[path].shape)
        if shapes[0] != shapes[1]:
            faults.add("shapes that differ", f"{path}: {shapes[0]}, the model has {shapes[1]}")
    faults.raise_if_any(title)


class _Faults:
    """Faults by kind, told in one message with the first few of each kind."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[str]] = {}

    def add(self, kind: str, fault: str) -> None:
        self._by_kind.setdefault(kind, []).append(fault)

    def raise_if_any(self, title: str) -> None:
        if not self._by_kind:
            return
        lines = [f"{title}:"]
        for kind, faults in self._by_kind.items():
            lines.append(f"  {kind} ({len(faults)}):")
            lines += [f"    {fault}" for fault in sorted(faults)[:_SHOWN_PER_KIND]]
            if len(faults) > _SHOWN_PER_KIND:
                lines.append(f"    ... and {len(faults) - _SHOWN_PER_KIND} more")
        raise WeightsError("\n".join(lines))


def _resolve(
    keys: Iterable[str], rules: Rules
) -> tuple[dict[str, list[tuple[str, Rule]]], _Faults]:
    """Finds each key's leaf; keys that the table claims not exactly once are faults."""
    compiled = [(re.compile(entry.pattern), entry) for entry in rules]
    targets: dict[str, list[tuple[str, Rule]]] = {}
    faults = _Faults()
    for key in keys:
        claims = [(match, entry) for regex, entry in compiled if (match := regex.fullmatch(key))]
        if not claims:
            faults.add("keys that no rule knows", key)
        elif len(claims) > 1:
            patterns = ", ".join(entry.pattern for _, entry in claims)
            faults.add("keys that several rules claim", f"{key}: {patterns}")
        else:
            match, entry = claims[0]
            if isinstance(entry, Rule):
                targets.setdefault(match.expand(entry.path), []).append((key, entry))
    return targets, faults


def _flatten(tree: Mapping[str, Any], root: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flatten(value, f"{root}{name}/")
        else:
            leaves[f"{root}{name}"] = value
    return leaves


def _unflatten_like(tree: Mapping[str, Any], leaves: Mapping[str, Any], root: str = "") -> dict:
    return {
        name: _unflatten_like(value, leaves, f"{root}{name}/")
        if isinstance(value, Mapping)
        else leaves[f"{root}{name}"]
        for name, value in tree.items()
    }
