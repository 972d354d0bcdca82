"""Pure functions on JAX arrays."""
