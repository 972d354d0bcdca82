"""Data sets as random-access sources, and the pipeline that batches them (without JAX)."""
