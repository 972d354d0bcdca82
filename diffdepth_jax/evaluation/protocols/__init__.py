"""Protocols: compute an image's metrics from its prediction and ground truth."""

from diffdepth_jax.evaluation.protocols.protocol import (
    MEASURING,
    OPTIONS,
    Predicts,
    Protocol,
)
from diffdepth_jax.evaluation.protocols.score import MEASURES, Comparison, Score
from diffdepth_jax.evaluation.protocols.table import PROTOCOLS, get, get_all

__all__ = [
    "MEASURES",
    "MEASURING",
    "OPTIONS",
    "PROTOCOLS",
    "Comparison",
    "Predicts",
    "Protocol",
    "Score",
    "get",
    "get_all",
]
