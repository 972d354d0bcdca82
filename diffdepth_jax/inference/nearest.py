"""Finds the known architecture closest to unrecognised weights, for the error message.

Only names and shapes are compared; those of known architectures come from tracing each variant.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from diffdepth_jax import registry
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.networks import network
from diffdepth_jax.models.networks.network import Network, NetworkConfig
from diffdepth_jax.weights import rules
from diffdepth_jax.weights.rules import Fresh, Rules, Skip
from diffdepth_jax.weights.text import shown

Shapes = Mapping[str, tuple[int, ...]]

_ENOUGH = 0.1  # minimum fraction of matching names for an architecture to count as near
_SHOWN = 6  # names per kind


@dataclasses.dataclass(frozen=True)
class _Candidate:
    network: str
    variant: str
    layout: str  # "", or which names they are
    config: NetworkConfig
    table: Rules


def describe(
    shapes: Shapes, networks: Sequence[str], agreement: float = 0.0, besides: Shapes | None = None
) -> str:
    """Describes the nearest variant of these networks and the differences; "" if none is near.

    Args:
        shapes: shapes of the weights by name.
        networks: registered names.
        agreement: minimum fraction of all names that must have the same shape in both.
        besides: names and shapes that the weights have already been compared with.
    """
    found: dict[int, list[_Candidate]] = {}
    for candidate in _candidates(networks):
        patterns = [
            re.compile(row.pattern) for row in candidate.table if not isinstance(row, Skip | Fresh)
        ]
        known = sum(any(pattern.fullmatch(name) for pattern in patterns) for name in shapes)
        found.setdefault(known, []).append(candidate)
    most = max(found, default=0)
    if most < max(1, _ENOUGH * len(shapes)):
        return ""

    def wanted(candidate: _Candidate) -> Shapes:
        module = registry.module("network", candidate.network).build(candidate.config)
        return rules.shapes(network.expected_variables(module), candidate.table)

    compared = [(candidate, wanted(candidate)) for candidate in found[most]]
    candidate, shapes_wanted = max(compared, key=lambda pair: _agreement(shapes, pair[1]))
    if _agreement(shapes, shapes_wanted) < agreement or shapes_wanted == besides:
        return ""
    return _difference(candidate, shapes, shapes_wanted)


def _candidates(networks: Sequence[str]) -> Iterator[_Candidate]:
    for name in networks:
        file = registry.module("network", name)
        for variant, config in _told_apart(file).items():
            if table := file.rules(config):
                yield _Candidate(name, variant, "", config, table)
            if file.TRANSFORMERS is None:
                continue
            try:
                table = file.TRANSFORMERS.rules(config)
            except ConfigError:  # transformers has no such variant
                continue
            yield _Candidate(name, variant, " with transformers' names", config, table)


def _told_apart(file: Network) -> dict[str, NetworkConfig]:
    """A network's variants; only the first of those that weights do not distinguish."""
    found: dict[str, NetworkConfig] = {}
    for variant in file.VARIANTS:
        config = file.VARIANTS[variant]
        if not any(have_same_weights(config, other) for other in found.values()):
            found[variant] = config
    return found


def have_same_weights(config: NetworkConfig, other: NetworkConfig) -> bool:
    """Whether two configs of a network only differ in fields that weights do not determine."""
    undetermined = (*network.of(config).UNDETERMINED, "max_depth")
    try:
        same = dataclasses.replace(other, **{name: getattr(config, name) for name in undetermined})
    except ValueError:  # the fields are incompatible
        return False
    return same == config


def _agreement(shapes: Shapes, wanted: Shapes) -> float:
    """The fraction of all names that have the same shape in both."""
    same = sum(shapes.get(name) == shape for name, shape in wanted.items())
    return same / len(shapes.keys() | wanted.keys())


def _difference(candidate: _Candidate, shapes: Shapes, wanted: Shapes) -> str:
    skipped = [re.compile(row.pattern) for row in candidate.table if isinstance(row, Skip)]

    def optional(name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in skipped)

    wanted = {name: shape for name, shape in wanted.items() if not optional(name)}
    both = shapes.keys() & wanted.keys()
    other = [f"{n}: {shapes[n]}, not {wanted[n]}" for n in both if shapes[n] != wanted[n]]
    kinds = {
        "with a different shape": other,
        "missing": sorted(wanted.keys() - both),
        "unknown": [name for name in shapes.keys() - both if not optional(name)],
    }
    lines = [
        f"The nearest known architecture is {candidate.variant!r} of the network "
        f"{candidate.network!r}{candidate.layout}, in which {len(both) - len(other)} of "
        f"{len(wanted)} names have the same shape:"
    ]
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            first = ", ".join(shown(name, 120) for name in sorted(names)[:_SHOWN])
            lines.append(f"  {kind} ({len(names)}): {first}{more}")
    return "\n".join(lines)
