"""How the processes of a run find each other: flags, or environment variables of a launcher.

    SLURM      srun sets SLURM_STEP_NODELIST, SLURM_PROCID, ...
    Open MPI   mpirun sets OMPI_COMM_WORLD_SIZE, ...; on several machines also set
               JAX_COORDINATOR_ADDRESS, as it does not provide the first process's host
    Kubernetes JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES, which the manifest must set, and
               JOB_COMPLETION_INDEX, which Kubernetes sets (or JAX_PROCESS_ID)
    Cloud TPU  TPU_WORKER_HOSTNAMES; JAX reads the rest itself

Flags take precedence, then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. JAX's own
detection is only used on TPU: under SLURM and Open MPI it assigns every process a single GPU, even
if one process should use a whole machine, and under Kubernetes it needs another package and
permission to read pods.
"""

import dataclasses
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.processes import Processes

_PORTS = (61440, 4096)  # first port and number of ports; a job's id selects one
_LEAVING = 30  # seconds that a finished or failed process waits for the others


@dataclasses.dataclass(frozen=True)
class Launch:
    """This process's place in a multi-process run.

    Attributes:
        coordinator: HOST:PORT where the first process waits for the others; None if JAX finds it.
        num_processes, process_id: None where JAX finds them.
        local_devices: the machine's accelerators that this process uses; None for all it sees.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: tuple[int, ...] | None = None


def detect(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Launch | None:
    """This process's place among several; None for a single process.

    Args:
        environment: variables, for example `os.environ`.
        coordinator, num_processes, process_id: from flags; they take precedence over the
            environment.

    Raises:
        ConfigError: if something is missing or wrong; names what to set.
    """
    found = _launcher(environment)
    number = _integer(environment, "JAX_NUM_PROCESSES")
    index = _integer(environment, "JAX_PROCESS_ID")
    if index is None and number is not None:
        index = _integer(environment, "JOB_COMPLETION_INDEX")
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or found.coordinator
    number = _first(num_processes, number, found.num_processes)
    index = _first(process_id, index, found.process_id)
    if number is None and coordinator is None and index is None:
        several = environment.get("TPU_WORKER_HOSTNAMES", "").count(",")
        return Launch() if several else None
    missing = [
        name
        for name, value in (
            ("--coordinator=HOST:PORT (or JAX_COORDINATOR_ADDRESS)", coordinator),
            ("--num_processes (or JAX_NUM_PROCESSES)", number),
            ("--process_id (or JAX_PROCESS_ID)", index),
        )
        if value is None
    ]
    if number == 1 and not index:
        return None
    if missing or coordinator is None:
        raise ConfigError(
            f"this is one of several processes, but {' and '.join(missing)} is not set"
        )
    if number < 1 or not 0 <= index < number:
        raise ConfigError(
            f"process_id is {index}, but num_processes is {number}: ids must be 0 to num_processes "
            "- 1"
        )
    if not re.fullmatch(r"(\[[^]]+\]|[^:\s]+):\d+", coordinator):
        raise ConfigError(f"coordinator is {coordinator!r}; it must be HOST:PORT")
    return Launch(coordinator, number, index, found.local_devices)


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of the run, if any. Must be called before JAX is used.

    Args:
        coordinator, num_processes, process_id: as in `detect`, which also reads the environment.

    Raises:
        ConfigError: as in `detect`.
    """
    launch = detect(os.environ, coordinator, num_processes, process_id)
    if launch is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        launch.coordinator,
        launch.num_processes,
        launch.process_id,
        local_device_ids=launch.local_devices,
        cluster_detection_method="deactivate" if launch.coordinator else None,
        shutdown_timeout_seconds=_LEAVING,
    )


def processes() -> Processes:
    """The processes of this run; just one unless `start` found others."""
    return Processes(jax.process_index(), jax.process_count(), _exchange)


def _exchange(message: bytes) -> list[bytes]:
    """Returns the messages of all processes."""
    sizes = multihost_utils.process_allgather(np.int32(len(message)))
    # Padded to a few different sizes, as each is compiled once.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    found = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(found, sizes, strict=True)]


def _launcher(environment: Mapping[str, str]) -> Launch:
    """What SLURM or Open MPI provide; empty if neither started several processes."""
    slurm = {name: _integer(environment, f"SLURM_{name}") for name in ("PROCID", "LOCALID")}
    number = _first(
        _integer(environment, "SLURM_STEP_NUM_TASKS"), _integer(environment, "SLURM_NTASKS")
    )
    # A batch script outside `srun` also sees the number of tasks, but no step.
    nodes = environment.get("SLURM_STEP_NODELIST")
    if nodes and slurm["PROCID"] is not None and (number or 1) > 1:
        # Two steps of a job may run at the same time.
        job, step = (_integer(environment, f"SLURM_{name}_ID") or 0 for name in ("JOB", "STEP"))
        port = _port(environment, job + 1009 * step)
        alone = re.fullmatch(
            r"1(\(x\d+\))?(,1(\(x\d+\))?)*", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
        )
        devices = None if alone else _own_device(environment, slurm["LOCALID"])
        return Launch(f"{_first_host(nodes)}:{port}", number, slurm["PROCID"], devices)
    number = _integer(environment, "OMPI_COMM_WORLD_SIZE")
    if (number or 1) > 1:
        beside = _integer(environment, "OMPI_COMM_WORLD_LOCAL_SIZE")
        local = None if beside == 1 else _integer(environment, "OMPI_COMM_WORLD_LOCAL_RANK")
        # Differs between two runs of mpirun on a machine.
        job = zlib.crc32(environment.get("PMIX_NAMESPACE", "").encode())
        coordinator = f"localhost:{_port(environment, job)}" if beside == number else None
        rank = _integer(environment, "OMPI_COMM_WORLD_RANK")
        return Launch(coordinator, number, rank, _own_device(environment, local))
    return Launch()


def _own_device(environment: Mapping[str, str], local: int | None) -> tuple[int, ...] | None:
    """The device of a process that shares its machine with others; None for all it sees.

    If the launcher has already bound one GPU to each process, it sees only that one.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:  # JAX reads it.
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    bound = visible is not None and "," not in visible
    return None if local is None or bound else (local,)


def _first_host(nodes: str) -> str:
    """The first host in a list such as `node[001-004,007],other`: node001."""
    match = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    if match is None:
        raise ConfigError(f"{nodes!r} has no host name: set --coordinator=HOST:PORT")
    return match[1] + (match[2] or "")


def _port(environment: Mapping[str, str], job: int) -> int:
    """JAX_COORDINATOR_PORT, or a port that other jobs on the machine are unlikely to use."""
    port = _integer(environment, "JAX_COORDINATOR_PORT")
    return _PORTS[0] + job % _PORTS[1] if port is None else port


def _integer(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.strip().isdecimal():
        raise ConfigError(f"the environment variable {name} is {text!r}; it must be a number")
    return int(text)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
