"""What a traced function multiplies, and what it has to read and write."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class Operation(NamedTuple):
    """A matrix product, convolution or reduction of a traced function.

    Attributes:
        name: of the primitive.
        multiply_adds: each time; 0 of reductions.
        bytes: of its arguments and results, each time.
        times: how often it runs; those of a loop more than once.
    """

    name: str
    multiply_adds: int
    bytes: int
    times: int


def operations(jaxpr: Any, times: int = 1) -> Iterator[Operation]:
    """Those of a function and of all that it calls; of both branches where it chooses."""
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
            # Where the input is spread out, most of what a kernel covers are zeros.
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
    """Of the matrix products and convolutions of a traced function."""
    return sum(each.times * each.multiply_adds for each in operations(jaxpr))


def _bytes(array: Any) -> int:
    return array.size * array.dtype.itemsize


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each
