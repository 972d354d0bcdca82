"""How depth is evaluated: protocols, metrics, runs over a data set, reports (no JAX)."""
