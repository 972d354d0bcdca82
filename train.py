"""Trains and evaluates; see --help, or `diffdepth_jax/scripts/train.py`."""

from diffdepth_jax.scripts.train import run

if __name__ == "__main__":
    run()
