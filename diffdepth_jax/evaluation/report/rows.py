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
      index: its place among the samples.
      id, condition: as the sample names them.
      scores, baseline: by the protocol's name.
      error: why the image could not be read; it then has no scores.
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
        """Reads `to_json`; numbers come back exactly."""
        values: dict[str, Any] = json.loads(text)
        for name in ("scores", "baseline"):
            values[name] = {key: Score(**score) for key, score in values[name].items()}
        return cls(**values)
