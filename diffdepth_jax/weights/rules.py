r"""Conversion tables that map a PyTorch state dict to a tree of variables and back.

Next to its modules, a model lists one `Rule` per kind of entry, and one `Skip` per kind of entry
that is deliberately left out::

    RULES = (
        Rule(r"layers\.(\d+)\.conv1\.weight", r"params/stage\1/conv1/kernel", conv),
        Rule(r"layers\.(\d+)\.bn1\.running_mean", r"batch_stats/stage\1/bn1/mean"),
        Skip(r".*\.num_batches_tracked", "a counter that no layer reads"),
    )

`convert` is strict: every key must match exactly one row of the table, and every leaf must be
filled exactly once, with equal shapes, because a checkpoint that "almost" fits would silently
predict nonsense. All faults are reported in one error.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.weights.text import shown

_SHOWN_PER_KIND = 8
_SHOWN_CHARACTERS = 400  # per fault
_GROUP = r"\(([^()?][^()]*)\)"  # a group without nested parentheses in a pattern
_ALTERNATIVES = r"\(\?:([^()|]*)\|[^()]*\)"


@dataclass(frozen=True)
class Transform:
    """A change of array layout: `forward` from PyTorch's to ours, `inverse` back; both in NumPy."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


identity = Transform(lambda array: array, lambda array: array)
"""No change: biases, norms, running statistics, embeddings."""

conv = Transform(
    lambda weight: weight.transpose(2, 3, 1, 0), lambda kernel: kernel.transpose(3, 2, 0, 1)
)
"""2-D convolution: OIHW to HWIO. Also for grouped and depthwise ones (O 1 H W to H W 1 O)."""

conv_transpose = Transform(
    lambda weight: weight.transpose(2, 3, 0, 1)[::-1, ::-1],
    lambda kernel: kernel.transpose(2, 3, 0, 1)[:, :, ::-1, ::-1],
)
"""Transposed 2-D convolution: PyTorch's (in, out, H, W) to HWIO **flipped in H and W**.

With this flip, `torch.nn.ConvTranspose2d(stride=s, padding=p)` with kernel size k equals the
correlation

    lax.conv_general_dilated(inputs, kernel, window_strides=(1, 1), lhs_dilation=(s, s),
                             padding=[(k - 1 - p, k - 1 - p + output_padding)] * 2,
                             dimension_numbers=("NHWC", "HWIO", "NHWC"))
"""

linear = Transform(lambda weight: weight.transpose(1, 0), lambda kernel: kernel.transpose(1, 0))
"""Dense layer: (out, in) to (in, out)."""


@dataclass(frozen=True)
class Rule:
    r"""Maps entries whose whole name matches a pattern to a leaf.

    Attributes:
        pattern: regular expression for the whole PyTorch key.
        path: '/'-joined path of the leaf, starting with the collection
            ("params/stage\1/conv1/kernel"); \1 or \g<name> refer to groups of the pattern.
        transform: the layout change, `identity` unless given.
        part: (index, count) if the entry is one of several that are concatenated along the leaf's
            last axis, such as separate queries, keys and values in one kernel.
    """

    pattern: str
    path: str
    transform: Transform = identity
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Skip:
    """Entries that no leaf needs, and the reason."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Derived(Skip):
    """Entries that duplicate a leaf: skipped when reading, and written from it by `export`.

    For example, other names of a shared module, or tables determined by a shape.
    """

    path: str
    transform: Transform = identity


@dataclass(frozen=True)
class Constant(Skip):
    """An entry that no leaf needs, but that strict loading in the published code requires.

    It is skipped when reading and may be missing; `export` writes `value()`. Its pattern is the
    escaped literal name.
    """

    value: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Fresh:
    """Leaves that these weights may lack, and the reason; `convert` then leaves them out.

    The pattern matches the leaf's path.
    """

    pattern: str
    reason: str


Row = Rule | Skip | Fresh
Rules = Sequence[Row]


def prefix(rules: Rules, key_prefix: str, path_prefix: str = "") -> tuple[Row, ...]:
    """Adds prefixes to a table: `prefix(encoder_rules, "depth_backbone.", "encoder")`.

    Args:
        rules: a table relative to a submodule.
        key_prefix: literal text before each key, including the final dot.
        path_prefix: '/'-joined modules to insert between the collection and the rest of each path.
    """

    def below(path: str) -> str:
        collection, _, rest = path.partition("/")
        return f"{collection}/{path_prefix}/{rest}" if path_prefix else path

    def rerooted(entry: Row) -> Row:
        if isinstance(entry, Fresh):
            return replace(entry, pattern=below(entry.pattern))
        alternatives = "|" in re.sub(r"\([^()]*\)", "", entry.pattern)
        inner = f"(?:{entry.pattern})" if alternatives else entry.pattern
        entry = replace(entry, pattern=re.escape(key_prefix) + inner)
        if isinstance(entry, Rule | Derived):
            return replace(entry, path=below(entry.path))
        return entry

    return tuple(rerooted(entry) for entry in rules)


def convert(
    state_dict: Mapping[str, np.ndarray],
    rules: Rules,
    expected: Mapping[str, Any],
    what: str = "The weights",
) -> dict[str, Any]:
    """Converts a state dict to variables.

    Args:
        state_dict: PyTorch keys to arrays.
        rules: the model's table.
        expected: nested mapping of collections whose leaves have `shape` and `dtype`, for example
            from `jax.eval_shape(model.init, ...)`.
        what: name of the weights in warnings.

    Returns:
        Nested dicts with the structure of `expected` and NumPy leaves of the expected dtypes, which
        share no memory with `state_dict`; without `Fresh` leaves that no key fills.

    Raises:
        WeightsError: if a key has no rule or several, or a leaf no key or several, or if shapes or
            kinds of numbers differ, such as integers for floats; one error lists all faults.

    Warns:
        UserWarning: about NaN and infinity, see `warn_if_not_finite`.
    """
    leaves = _flatten(expected)
    targets, faults = _resolve(state_dict, rules)
    arrays: dict[str, np.ndarray] = {}
    keys: dict[str, str] = {}
    for path, claims in targets.items():
        sources = [(key, rule) for key, rule in claims if isinstance(rule, Rule)]
        if path not in leaves:
            for key, _ in sources:
                faults.add("keys whose leaf is not in the model", f"{key} -> {path}")
            continue
        sources.sort(key=lambda source: source[1].part)
        parts, count = [rule.part for _, rule in sources], sources[0][1].part[1]
        if parts != [(index, count) for index in range(count)]:
            several = ", ".join(key for key, _ in sources)
            twice = len(set(parts)) < len(parts)
            kind = "leaves filled more than once" if twice else "partially filled leaves"
            faults.add(kind, f"{path} <- {several}")
            continue
        wanted = tuple(leaves[path].shape)
        if count > 1:
            wanted = (*wanted[:-1], wanted[-1] // count)
        filled = [
            _array(state_dict[key], key, path, rule.transform, wanted, leaves[path].dtype, faults)
            for key, rule in sources
        ]
        whole = [array for array in filled if array is not None]
        if len(whole) == len(filled):
            array = np.concatenate(whole, -1) if count > 1 else whole[0]
            with np.errstate(
                over="ignore"
            ):  # values beyond the type's range become infinite, with a warning below
                arrays[path] = array.astype(leaves[path].dtype, order="C")
            keys[path] = ", ".join(key for key, _ in sources)
    fresh = [re.compile(entry.pattern) for entry in rules if isinstance(entry, Fresh)]
    unfilled = [
        path
        for path in leaves.keys() - targets.keys()
        if not any(pattern.fullmatch(path) for pattern in fresh)
    ]
    keys_of = _keys_of(expected, rules) if unfilled else {}
    for path in unfilled:
        missing = f": no {keys_of[path]}" if path in keys_of else ""
        faults.add("leaves that no key fills", f"{path} {tuple(leaves[path].shape)}{missing}")
    faults.raise_if_any("The weights do not fit the model")
    warn_if_not_finite({keys[path]: array for path, array in arrays.items()}, what)
    return _unflatten_like(expected, arrays)


def export(
    variables: Mapping[str, Any], rules: Rules, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Converts variables back to a state dict: the inverse of `convert`.

    Args:
        variables: nested mapping of collections with array leaves.
        rules: the model's table.
        names: the PyTorch keys to produce, for example from `names`; keys that the table skips are
            not in the result.

    Raises:
        WeightsError: if a name has no rule, several rules or no leaf, or a leaf has no name.
    """
    views = _views(_flatten(variables), rules, names)
    return {name: np.ascontiguousarray(view).reshape(view.shape) for name, view in views.items()}


def shapes(variables: Mapping[str, Any], rules: Rules) -> dict[str, tuple[int, ...]]:
    """The names under which a table writes these leaves, with the entries' shapes.

    Args:
        variables, rules: as in `names`; leaves only need a `shape`.

    Raises:
        WeightsError: as in `names`.
    """
    leaves = {path: np.broadcast_to(0.0, leaf.shape) for path, leaf in _flatten(variables).items()}
    views = _views(leaves, rules, names(variables, rules))
    return {name: view.shape for name, view in views.items()}


def _views(leaves: Mapping[str, Any], rules: Rules, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Like `export`, but arrays may not be contiguous."""
    names = tuple(names)
    targets, faults = _resolve(names, rules, writing=True)
    constants = {_literal(entry): entry for entry in rules if isinstance(entry, Constant)}
    views = {name: constants[name].value() for name in names if name in constants}
    for path, sources in targets.items():
        for key, rule in sources:
            if path in leaves:
                array = np.asarray(leaves[path])
                if isinstance(rule, Rule) and rule.part[1] > 1:
                    array = np.split(array, rule.part[1], axis=-1)[rule.part[0]]
                views[key] = rule.transform.inverse(array)
            else:
                faults.add("names whose leaf is not in the variables", f"{key} -> {path}")
    for path in leaves.keys() - targets.keys():
        faults.add("leaves without a name", path)
    faults.raise_if_any("The variables cannot be written under these names")
    return views


def names(variables: Mapping[str, Any], rules: Rules) -> tuple[str, ...]:
    """The PyTorch keys under which a table writes these leaves, by inverting the table.

    This is possible if patterns consist of literal text and groups without nested parentheses that
    all occur in the path. For alternatives, `(?:one|another)`, the first is used.

    Args:
        variables: nested mapping of collections; the leaves' values are not used.
        rules: the model's table.

    Raises:
        WeightsError: if a rule cannot be inverted, or two rules claim a leaf.
    """
    leaves, faults = _flatten(variables), _Faults()
    found: list[str] = []
    claims: dict[tuple[str, tuple[int, int]], str] = {}
    for entry in rules:
        if isinstance(entry, Constant):
            found.append(_literal(entry))
        if not isinstance(entry, Rule | Derived):
            continue
        regex, template = _backwards(entry)
        for match in filter(None, map(regex.fullmatch, leaves)):
            path, name = match.string, match.expand(template)
            forward = re.fullmatch(entry.pattern, name)
            if not forward or forward.expand(entry.path) != path:
                raise WeightsError(f"the pattern {entry.pattern!r} cannot be inverted")
            if isinstance(entry, Rule) and claims.setdefault((path, entry.part), name) != name:
                pair = f"{claims[path, entry.part]}, {name}"
                faults.add("leaves with several names", f"{path} -> {pair}")
            found.append(name)
    faults.raise_if_any("The table cannot be inverted")
    return tuple(found)


def _keys_of(variables: Mapping[str, Any], rules: Rules) -> dict[str, str]:
    """The keys that fill each leaf; empty if the table cannot be inverted."""
    try:
        targets, _ = _resolve(names(variables, rules), rules)
    except WeightsError:
        return {}
    return {path: ", ".join(key for key, _ in sources) for path, sources in targets.items()}


def _literal(entry: Constant) -> str:
    return re.sub(r"\\(\W)", r"\1", entry.pattern)


def _backwards(entry: Rule | Derived) -> tuple[re.Pattern, str]:
    """A pattern for paths and a template for names, from a rule's pattern and path."""
    pattern = re.sub(_ALTERNATIVES, r"\1", entry.pattern)
    groups = re.findall(_GROUP, pattern)
    text = re.sub(r"\\(\W)", r"\1", re.sub(_GROUP, "()", pattern))
    parts = re.split(r"\\(\d+)", entry.path)  # literal, number of a group, literal, ...
    used = {int(number) for number in parts[1::2]}
    if "(?" in text or "\\" in text or used != set(range(1, len(groups) + 1)):
        raise WeightsError(f"the pattern {entry.pattern!r} cannot be inverted")
    regex, seen = "", set()
    for literal, number in zip(parts[::2], [*parts[1::2], None], strict=True):
        regex += re.escape(literal)
        if number is not None:
            group = f"(?P<g{number}>{groups[int(number) - 1]})"
            regex += f"(?P=g{number})" if number in seen else group
            seen.add(number)
    numbers = iter(range(1, len(groups) + 1))
    return re.compile(regex), re.sub(r"\(\)", lambda _: rf"\g<g{next(numbers)}>", text)


def check(variables: Mapping[str, Any], expected: Mapping[str, Any], title: str) -> None:
    """Checks variables that are already in our layout against what a model expects.

    Args:
        variables: nested mapping of collections with array leaves.
        expected: as in `convert`.
        title: first words of the error.

    Raises:
        WeightsError: if a leaf is missing, unexpected, or has a different shape or kind of number;
            lists all of them.
    """
    found, wanted, faults = _flatten(variables), _flatten(expected), _Faults()
    for path in wanted.keys() - found.keys():
        faults.add("missing leaves", f"{path} {tuple(wanted[path].shape)}")
    for path in found.keys() - wanted.keys():
        faults.add("leaves that are not in the model", path)
    for path in found.keys() & wanted.keys():
        shapes = tuple(found[path].shape), tuple(wanted[path].shape)
        if shapes[0] != shapes[1]:
            faults.add("shapes that differ", f"{path}: {shapes[0]}, but the model has {shapes[1]}")
        elif _kind(found[path].dtype) != _kind(wanted[path].dtype):
            types = f"{found[path].dtype}, but the model has {wanted[path].dtype}"
            faults.add("numbers of the wrong kind", f"{path}: {types}")
    faults.raise_if_any(title)


class _Faults:
    """Faults by kind, reported in one message with the first few of each kind."""

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
            first = sorted(faults)[:_SHOWN_PER_KIND]
            lines += [f"    {shown(fault, _SHOWN_CHARACTERS)}" for fault in first]
            if len(faults) > _SHOWN_PER_KIND:
                lines.append(f"    ... and {len(faults) - _SHOWN_PER_KIND} more")
        raise WeightsError("\n".join(lines))


def warn_if_not_finite(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Warns about arrays that contain NaN or infinity, and names them.

    Args:
        arrays: arrays by name; integers are always finite.
        what: start of the warning, for example the checkpoint's name.
    """
    bad = [
        name
        for name, array in arrays.items()
        if _kind(array.dtype) in ("float", "complex") and not np.isfinite(array).all()
    ]
    if bad:
        more = f" and {len(bad) - _SHOWN_PER_KIND} more" if len(bad) > _SHOWN_PER_KIND else ""
        names = ", ".join(shown(name, _SHOWN_CHARACTERS) for name in bad[:_SHOWN_PER_KIND])
        warnings.warn(
            f"{what} contain NaN or infinity in {len(bad)} of {len(arrays)} entries: "
            f"{names}{more}. Predictions are likely to be NaN: use an earlier checkpoint",
            stacklevel=3,
        )


def _kind(dtype: np.dtype) -> str:
    """The kind of number (float, complex, int or bool), or another kind of dtype."""
    dtype = np.dtype(dtype)
    if dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")):  # not built into NumPy
        return "float"
    names = {"f": "float", "c": "complex", "i": "int", "u": "int", "b": "bool"}
    return names.get(dtype.kind, dtype.name)


def _array(
    found: Any,
    key: str,
    path: str,
    transform: Transform,
    wanted: tuple[int, ...],
    dtype: np.dtype,
    faults: _Faults,
) -> np.ndarray | None:
    """The entry in our layout; if its shape or kind differs, records a fault and returns None."""
    found = np.asarray(found)
    try:
        array = transform.forward(found)
    except ValueError as error:  # transposing an array of a different rank
        faults.add("shapes that differ", f"{key} {found.shape} -> {path} {wanted}: {error}")
        return None
    if array.shape != wanted:
        shapes = f"{found.shape} becomes {array.shape}, but the model has {wanted}"
        faults.add("shapes that differ", f"{key} -> {path}: {shapes}")
        return None
    if _kind(array.dtype) != _kind(dtype):
        faults.add("numbers of the wrong kind", f"{key}: {array.dtype}, but the model has {dtype}")
        return None
    return array


def _resolve(
    keys: Iterable[str], rules: Rules, writing: bool = False
) -> tuple[dict[str, list[tuple[str, Rule | Derived]]], _Faults]:
    """Finds each key's leaf; keys not matched exactly once are recorded as faults."""
    compiled = [
        (re.compile(entry.pattern), entry) for entry in rules if not isinstance(entry, Fresh)
    ]
    kinds = (Rule, Derived) if writing else Rule
    targets: dict[str, list[tuple[str, Rule | Derived]]] = {}
    faults = _Faults()
    for key in keys:
        claims = [(match, entry) for regex, entry in compiled if (match := regex.fullmatch(key))]
        if not claims:
            faults.add("keys without a rule", key)
        elif len(claims) > 1:
            patterns = ", ".join(entry.pattern for _, entry in claims)
            faults.add("keys with several rules", f"{key}: {patterns}")
        else:
            match, entry = claims[0]
            if isinstance(entry, kinds):
                targets.setdefault(match.expand(entry.path), []).append((key, entry))
    return targets, faults


def _flatten(tree: Mapping[str, Any], root: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
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
        if isinstance(value, Mapping) or f"{root}{name}" in leaves
    }
