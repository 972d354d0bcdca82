"""Depth evaluation: protocols, metrics, runs over a data set, reports (without JAX)."""
