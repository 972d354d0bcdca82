"""A run that is killed at any moment, again and again, ends as an uninterrupted one does."""

import itertools
import multiprocessing
import random
from pathlib import Path

import pytest

from diffdepth_jax import registry
from diffdepth_jax.adverse import config, runner
from tests.adverse import stand_in

KILLS = 50


def generate(mapping, workdir, shard=None):
    """One start, in a process of its own."""
    registry.MODULES["backend"]["stand_in"] = stand_in.__name__
    runner.run(config.from_mapping(mapping), workdir, shard=shard, progress=False)


def contents(workdir: Path) -> dict[str, bytes]:
    """Everything in a workdir but journals and what says who holds it."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and "journal" not in path.parts
    }


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "diffdepth_jax.adverse.runner"])
    return context


@pytest.mark.slow
def test_fifty_kills_at_any_moment(mapping, processes, tmp_path):
    settings = mapping(variants=6, backend={"name": "stand_in", "batch_size": 2, "seconds": 0.005})
    generate(settings, tmp_path / "whole")
    warm = processes.Process(target=generate, args=(settings, tmp_path / "warm"))
    warm.start()  # The first one waits for the imports.
    warm.join()
    rng, kills = random.Random(0), 0
    for number in itertools.count():  # as a run is over after a few lives
        workdir, lives = tmp_path / f"killed_{number}", 0
        while True:
            process = processes.Process(target=generate, args=(settings, workdir))
            process.start()
            process.join(rng.uniform(0, 0.4))
            process.kill()
            process.join()
            lives += 1
            if process.exitcode != -9:
                break
        assert process.exitcode == 0
        assert contents(workdir) == contents(tmp_path / "whole")
        kills += lives - 1
        if kills >= KILLS:
            break
    assert number < kills / 2  # or they were hardly killed at work
