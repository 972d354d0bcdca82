"""Counts the multiplications of a traced function and the bytes that it must read and write."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class Operation(NamedTuple):
    """A matrix product, convolution or reduction of a traced function.

    Attributes:
        name: the primitive.
        multiply_adds: per run; 0 for reductions.
        bytes: size of arguments and results, per run.
        times: how often it runs; more than once inside a loop.
    """

    name: str
    multiply_adds: int
    bytes: int
    times: int


def operations(jaxpr: Any, times: int = 1) -> Iterator[Operation]:
    """Operations of a function and everything it calls; for a condition, of both branches."""
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        counted = None
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            counted = depth * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            # With a dilated input most of the values under a kernel are zeros.
            spread = math.prod(parameters["lhs_dilation"])
            counted = equation.outvars[0].aval.size * (kernel.size // features) // spread
        elif name.startswith("reduce_"):
            counted = 0
        if counted is not None:
            size = sum(_bytes(each.aval) for each in (*equation.invars, *equation.outvars))
            yield Operation(name, counted, size, times)
        trips = parameters["length"] if name == "scan" else 1
        for inner in _inner(parameters):
            yield from operations(inner, times * trips)


def multiply_adds(jaxpr: Any) -> int:
    """Multiply-adds of the matrix products and convolutions of a traced function."""
    return sum(each.times * each.multiply_adds for each in operations(jaxpr))


def _bytes(array: Any) -> int:
    return array.size * array.dtype.itemsize


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each
