"""Predicts depth; see --help, or `diffdepth_jax/scripts/predict.py`."""

from diffdepth_jax.scripts.predict import run

if __name__ == "__main__":
    run()
