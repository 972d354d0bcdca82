"""A run that is killed again and again, at any moment, ends like an uninterrupted one."""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from diffdepth_jax import registry
from diffdepth_jax.adverse import config, runner
from diffdepth_jax.errors import FileError
from tests.adverse import model_folders, stand_in

KILLS = 50


def generate(mapping, workdir, python=None):
    """One start, in its own process."""
    registry.MODULES["backend"]["stand_in"] = stand_in.__name__
    try:
        runner.run(config.from_mapping(mapping), workdir, python=python, progress=False)
    except FileError as error:  # A worker that is killed again and again ends the run.
        sys.exit(f"{error}")


def contents(workdir: Path) -> dict[str, bytes]:
    """Everything in a workdir but journals and the workers' logs."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and not {"journal", "logs"} & set(path.parts)
    }


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    late = ("adverse.structure", "data.pipeline", "visualize")  # imported on demand
    context.set_forkserver_preload([__name__, *(f"diffdepth_jax.{name}" for name in late)])
    return context


def timed(processes, settings, folder: Path, python=None) -> float:
    """The seconds that a run takes; the first one includes the imports."""
    for name in ("first", "second"):
        started = time.monotonic()
        process = processes.Process(target=generate, args=(settings, folder / name, python))
        process.start()
        process.join()
        assert process.exitcode == 0
    return time.monotonic() - started


@pytest.mark.slow
def test_fifty_kills_at_any_moment(mapping, processes, tmp_path):
    settings = mapping(variants=6, backend={"name": "stand_in", "batch_size": 2, "seconds": 0.005})
    generate(settings, tmp_path / "whole")
    length = timed(processes, settings, tmp_path)
    rng, kills = random.Random(0), 0
    for number in itertools.count():  # each run finishes after a few lives
        workdir, lives = tmp_path / f"killed_{number}", 0
        while True:
            process = processes.Process(target=generate, args=(settings, workdir))
            process.start()
            process.join(rng.uniform(0, length * (0.5 + 0.25 * lives)))
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
    assert number < kills  # on average each run was killed more than once


def children(process: int) -> list[int]:
    """A process's child processes."""
    try:
        return [
            int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks up processes in /proc")
def test_fifty_kills_of_runner_or_worker_at_any_moment(mapping, processes, tmp_path):
    base = model_folders.write_base(tmp_path / "base")
    adapter = model_folders.write_adapter(tmp_path / "adapter")
    backend = {"name": "diffusers", "base": str(base), "control": str(adapter)}
    settings = mapping(variants=5, backend=backend | {"batch_size": 2, "threads": 1})
    log = tmp_path / "log"
    python = str(model_folders.write_interpreter(tmp_path / "python", delay=0.005, log=str(log)))
    generate(settings, tmp_path / "whole", python)
    assert len(log.read_text().splitlines()) == 50

    length = timed(processes, settings, tmp_path, python)
    rng = random.Random(1)
    kills = {"runner": 0, "worker": 0}
    for number in range(4 * KILLS):
        workdir, exit_code, lives = tmp_path / f"killed_{number}", None, 0
        while exit_code != 0:
            process = processes.Process(target=generate, args=(settings, workdir, python))
            process.start()
            victim, lives = "", lives + 1
            while process.exitcode is None and victim != "runner":
                process.join(rng.uniform(0, length * (0.5 + 0.25 * lives)))
                workers = children(process.pid)
                victim = "worker" if workers and rng.random() < 0.5 else "runner"
                if process.exitcode is None:
                    kills[victim] += 1
                    os.kill(workers[0] if victim == "worker" else process.pid, signal.SIGKILL)
            process.join()
            exit_code = process.exitcode
        assert contents(workdir) == contents(tmp_path / "whole")
        if sum(kills.values()) >= KILLS and min(kills.values()) >= KILLS // 5:
            break
    assert sum(kills.values()) >= KILLS and min(kills.values()) >= KILLS // 5
