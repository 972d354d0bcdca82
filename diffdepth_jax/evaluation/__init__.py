"""Metrics, protocols and the evaluation loop (NumPy in float64, no JAX)."""
