"""Time from the start of a process to its first depth map, against plain PyTorch.

    python benchmarks/startup.py [--cases="res18 96x320,swin_tiny 96x320"]

Every round starts a new process for each way: imports, reading weights, compilation, one prediction
with 20 steps. "jax cached" finds JAX's compilations on disk from an earlier process. Files are in
the disk cache. Appends to results/benchmarks.csv.
"""

from pathlib import Path

import harness
import peer
import prediction
from harness import Question, Way


def cached_jax_way(case: str, folder: Path):
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return prediction.jax_way(case, folder)


QUESTION = Question(
    "startup",
    ("swin_tiny 96x320",),
    {
        "torch": Way("torch", prediction.torch_way(compiled=False)),
        "jax": Way("jax", prediction.jax_way),
        "jax cached": Way("jax", cached_jax_way),
    },
    peer.write_weights,
    fresh=True,
)

if __name__ == "__main__":
    harness.main(QUESTION, __doc__)
