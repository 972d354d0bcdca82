"""Self-diffusion beside diffusion of the ground truth and beside plain regression, at a small size.

python studies/self_diffusion.py --workdir=runs/self_diffusion [--seeds=3]
"""

import argparse
from pathlib import Path

import jax
import self_diffusion_runs as runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="for runs and results")
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    # The same step is compiled once for all of its seeds.
    jax.config.update("jax_compilation_cache_dir", str(flags.workdir / "compiled"))
    for training in runs.planned(flags.seeds):
        training.run(flags.workdir)
        jax.clear_caches()


if __name__ == "__main__":
    main()
