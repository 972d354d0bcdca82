"""Evaluates; see --help, or `diffdepth_jax/scripts/evaluate.py`."""

from diffdepth_jax.scripts.evaluate import run

if __name__ == "__main__":
    run()
