"""Makes adverse images; see --help, or `diffdepth_jax/scripts/generate_adverse.py`."""

from diffdepth_jax.scripts.generate_adverse import run

if __name__ == "__main__":
    run()
