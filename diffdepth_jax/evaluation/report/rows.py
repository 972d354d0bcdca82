"""One image's part of a result."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from diffdepth_jax.evaluation.protocols import Score


@dataclasses.dataclass(frozen=True)
class Row:
    """One image's part of a result.

    Attributes:
        index: its position among the samples.
        id, condition: the sample's id and condition.
        scores, baseline: by the protocol's name.
        error: reason why the image could not be read; there are then no scores.
    """

    index: int
    id: str
    condition: str = ""
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    baseline: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Row":
        """Reads the output of `to_json`; numbers are preserved exactly.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, RecursionError: for any other content.
        """
        values: dict[str, Any] = json.loads(text)
        for name in ("scores", "baseline"):
            values[name] = {key: _score(score) for key, score in values[name].items()}
        row = cls(**values)
        if type(row.index) is not int or not isinstance(row.id, str):
            raise ValueError("this is not a row")
        return row


def _score(values: Mapping[str, Any]) -> Score:
    score = Score(**values)
    counts = score.num_valid, score.num_nonfinite, score.num_clipped, score.num_zero
    numbers = [score.mean_depth, *score.metrics.values()]
    numbers += [value for part in score.classes.values() for value in part.values()]
    numbers += [value for curve in score.curves.values() for value in curve]
    if not all(type(count) is int for count in counts):
        raise TypeError("counts must be whole numbers")
    if not all(type(number) in (int, float) for number in numbers):
        raise TypeError("metrics must be numbers")
    return score
