"""Shared by the benchmarks: what a row records about its run, and comparing worker processes.

A comparison has several ways of computing the same thing, one of them the peer. Each way has its
own process, in the environment of its framework. First all compute once and their results are
compared; then they compute in turn, round by round, while the others wait, so that other work on
the machine affects all of them. All compute on the CPU with as many threads as this process has
cores; memory and processor time are read from /proc, so this needs Linux.
"""

import argparse
import csv
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
sys.path.append(str(PROJECT))  # scripts have only their own folder there

from studies.reporting import git  # noqa: E402

RESULTS = PROJECT / "results" / "benchmarks.csv"
PYTHON = {"jax": PROJECT / ".venv/bin/python", "torch": PROJECT / ".venv-torch/bin/python"}
_MIN_ROUNDS = 3
_LOADED = 0.15  # cores busy with other work; this also counts processes that are ending


# ---- what a row records about its run ------------------------------------------------------------


def commit() -> str:
    """The project's short commit, with + if the tree has changes; empty outside git."""
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":!results")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changes)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def device() -> str:
    return "1 CPU core" if cores() == 1 else f"{cores()} CPU cores"


def device_and_load() -> str:
    return f"{device()} (load {os.getloadavg()[0]:.1f})"


def versions(*packages: str) -> str:
    """Names and versions of the installed ones among these packages."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return " ".join(found)


def print_rows(rows: Iterable[Sequence[Any]]) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    sys.stdout.flush()


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to a CSV file, with a header if it is new.

    Raises:
        SystemExit: if the file has other columns.
    """
    is_new = not path.exists()
    if not is_new:
        with path.open(newline="") as file:
            header = next(csv.reader(file), [])
        if header != list(rows[0]):
            raise SystemExit(f"{path} has the columns {header}, not {list(rows[0])}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


# ---- comparisons ---------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Way:
    """One way to compute.

    Attributes:
        environment: "jax" or "torch", whose interpreter runs it.
        prepare: called in the worker with the case and the folder of `Question.setup`; returns a
            function that computes once and returns its results, by name.
        optional: whether a failure is only reported.
        cases: the cases in which it is measured by default, without `--ways`; None: all.
    """

    environment: str
    prepare: Callable[[str, Path], Callable[[], Arrays]]
    optional: bool = False
    cases: Collection[str] | None = None


@dataclass(frozen=True)
class Question:
    """What a script measures.

    Attributes:
        name: the question's name, a column of the results.
        cases: their names, "VARIANT HxW ...".
        ways: by name; the first is the peer, against which the others are timed.
        setup: called with each case and a folder for files, before its workers start.
        tolerance: largest allowed difference from the peer's results, over their largest value.
        fresh: whether each round is a new process, timed from its start to its first result.
    """

    name: str
    cases: Sequence[str]
    ways: Mapping[str, Way]
    setup: Callable[[str, Path], None]
    tolerance: float = 1e-3
    fresh: bool = False


def main(question: Question, description: str) -> None:
    """The script's command line: measures all cases, prints the rows and appends them."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--cases", default=",".join(question.cases))
    parser.add_argument("--ways", help=", ".join(question.ways))
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument(
        "--seconds", type=float, default=40, help="time after which no new round starts"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="- to print only")
    parser.add_argument("--worker", choices=question.ways, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keeps weights for several scripts")
    flags = parser.parse_args()
    if flags.worker:
        _work(question.ways[flags.worker].prepare, flags.worker, flags.cases, flags.folder)
        return
    asked = flags.ways.split(",") if flags.ways else None
    if unknown := set(asked or ()) - set(question.ways):
        parser.error(f"--ways has {sorted(unknown)}; there are {list(question.ways)}")
    with ExitStack() as stack:
        folder = flags.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for case in flags.cases.split(","):
            names = [
                name
                for name, way in question.ways.items()
                if (name in asked if asked else way.cases is None or case in way.cases)
            ]
            question.setup(case, folder)
            rows = measure(question, case, names, folder, flags.rounds, flags.seconds)
            for row in rows:
                shown = ("question", "case", "way", "seconds", "ratio", "peak_mb", "note")
                print("  ".join(f"{name}={row[name]}" for name in shown if row[name]), flush=True)
            if str(flags.results) != "-":
                append(flags.results, rows)


def measure(
    question: Question,
    case: str,
    names: Sequence[str],
    folder: Path,
    rounds: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Rows of one case, one per way."""
    load, measured = os.getloadavg()[0], commit()
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in names:
            worker = Worker(question.ways[name], name, case, folder)
            stack.callback(worker.stop)
            if worker.start():
                workers[name] = worker
            elif question.ways[name].optional:
                print(f"{question.name}, {case}: {name} does not work here", flush=True)
            else:
                raise SystemExit(f"{question.name}, {case}: {name} has failed")
        errors = _compare(question, case, list(workers), folder)
        started, busy = time.perf_counter(), _busy()
        for done in range(rounds):
            if done >= _MIN_ROUNDS and time.perf_counter() - started > seconds:
                break
            for worker in workers.values():
                worker.start_again() if question.fresh else worker.compute()
        elapsed = time.perf_counter() - started
        own = sum(sum(worker.processor) for worker in workers.values())
        others = max((_busy() - busy - own) / elapsed, 0.0) if elapsed else 0.0
        for worker in workers.values():
            worker.finish()
    note = f"loaded: other work took {others:.1f} cores" if others > _LOADED else ""
    peer = next(iter(workers.values()))
    return [
        {"question": question.name, "case": case, "way": name}
        | _figures(worker, peer)
        | {
            "error": f"{errors[name]:.1e}",
            "commit": measured,
            "versions": worker.facts["versions"],
            "device": device(),
            "load": f"{load:.2f}",
            "note": note,
        }
        for name, worker in workers.items()
    ]


def _compare(question: Question, case: str, names: Sequence[str], folder: Path) -> dict[str, float]:
    """Each way's largest difference from the first, over the largest value of that result."""
    results = [dict(np.load(folder / f"{name}.npz")) for name in names]
    errors = {}
    for name, found in zip(names, results, strict=True):
        errors[name] = max(
            float(np.abs(found[part].astype(np.float64) - theirs).max() / np.abs(theirs).max())
            for part, theirs in results[0].items()
        )
        if not errors[name] <= question.tolerance:
            raise SystemExit(
                f"{question.name}, {case}: the result of {name} differs by {errors[name]:.1e}"
            )
    return errors


def environment() -> dict[str, str]:
    """Environment of processes that run on the CPU and import the package from this project."""
    return os.environ | {"PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}


class Worker:
    """A process that computes one way on request.

    Attributes:
        seconds, processor: wall-clock and processor time of each round.
        facts: what it has reported about itself.
    """

    def __init__(self, way: Way, name: str, case: str, folder: Path):
        python = PYTHON[way.environment]
        if not python.exists():
            raise SystemExit(f"{python} is missing: make setup torch")
        options = ["--worker", name, "--cases", case, "--folder", str(folder)]
        self.command = [str(python), sys.argv[0], *options]
        self.is_quiet = way.optional
        self.process: subprocess.Popen | None = None
        self.facts: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def start(self) -> bool:
        """Starts the process and waits for its first result; returns whether there is one."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if self.is_quiet else None,
            text=True,
            env=environment(),
        )
        return self._answer()

    def start_again(self) -> None:
        """A round of a new process, timed from its start to its first result."""
        self.finish()
        start = time.perf_counter()
        self._succeed(self.start())
        self._note(time.perf_counter() - start)

    def compute(self) -> None:
        """A round of a running process."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._succeed(self._answer())
        self._note(self.facts["seconds"])

    def finish(self) -> None:
        """Ends the process and reads its last report."""
        self.facts |= json.loads(self.process.communicate()[0])

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def _answer(self) -> bool:
        line = self.process.stdout.readline()
        self.facts |= json.loads(line or "{}")
        return bool(line)

    def _note(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.processor.append(self.facts["processor"])

    def _succeed(self, succeeded: bool) -> None:
        if not succeeded:
            raise SystemExit(f"failed: {' '.join(self.command)}")


def _work(
    prepare: Callable[[str, Path], Callable[[], Arrays]], name: str, case: str, folder: Path
) -> None:
    """A worker: computes once, and again for each line that it reads."""
    answers, sys.stdout = sys.stdout, sys.stderr
    start = time.perf_counter()
    compute = prepare(case, folder)
    ready = time.perf_counter() - start
    results = compute()
    first = time.perf_counter() - start - ready
    np.savez(folder / f"{name}.npz", **results)
    overall = _memory("VmHWM")
    del results
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory freed by compilation is no part of later peaks
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    framework = "torch" if "torch" in sys.modules else "jax"
    facts = {"ready": ready, "first": first, "rest_mb": _memory("VmRSS")}
    facts |= {"processor": time.process_time(), "versions": versions(framework)}
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        start, processor = time.perf_counter(), time.process_time()
        compute()
        answer = {"seconds": time.perf_counter() - start}
        answer["processor"] = time.process_time() - processor
        print(json.dumps(answer), file=answers, flush=True)
    peak = _memory("VmHWM")
    print(json.dumps({"peak_mb": peak, "overall_mb": max(overall, peak)}), file=answers)


def _figures(worker: Worker, peer: Worker) -> dict[str, Any]:
    median, facts = statistics.median(worker.seconds), worker.facts
    ratios = [ours / theirs for ours, theirs in zip(worker.seconds, peer.seconds, strict=True)]
    return {
        "seconds": f"{median:.4g}",
        "seconds_range": _range(worker.seconds, 4),
        "ratio": f"{statistics.median(ratios):.3f}",
        "ratio_range": _range(ratios, 3),
        "rounds": len(ratios),
        "peak_mb": f"{facts['peak_mb']:.0f}",
        "peak_ratio": f"{facts['peak_mb'] / peer.facts['peak_mb']:.2f}",
        "rest_mb": f"{facts['rest_mb']:.0f}",
        "overall_mb": f"{facts['overall_mb']:.0f}",
        "ready_s": f"{facts['ready']:.1f}",
        "compile_s": f"{max(facts['first'] - median, 0.0):.1f}",
    }


def _range(values: Sequence[float], digits: int) -> str:
    return f"{min(values):.{digits}g}-{max(values):.{digits}g}"


def _memory(name: str) -> float:
    """A line of this process's status in /proc, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024


def _busy() -> float:
    """Seconds that all of the machine's processors have worked since boot."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
