"""Data sets as random-access sources, and the pipeline that makes batches of them (no JAX)."""
