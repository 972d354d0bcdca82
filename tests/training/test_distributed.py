import pytest

from diffdepth_jax.errors import ConfigError, FileError
from diffdepth_jax.training import workdir
from diffdepth_jax.training.distributed import Launch, detect
from tests.together import together

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "node[003-004,007],other",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
}
KUBERNETES = {
    "JAX_COORDINATOR_ADDRESS": "train-host-0-0.train:1234",
    "JAX_NUM_PROCESSES": "8",
    "JOB_COMPLETION_INDEX": "5",
}
A_GPU_EACH = {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        # One process per machine sees all its devices; the port is 61440 + 4099 % 4096.
        (SLURM, Launch("node003:61443", 4, 2)),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu-a,gpu-b"}, Launch("gpu-a:61443", 4, 2)),
        (SLURM | {"JAX_COORDINATOR_PORT": "99"}, Launch("node003:99", 4, 2)),
        # Several per machine get one device each, unless SLURM has already bound them.
        (SLURM | A_GPU_EACH, Launch("node003:61443", 4, 2, (1,))),
        (SLURM | A_GPU_EACH | {"CUDA_VISIBLE_DEVICES": "0,1"}, Launch("node003:61443", 4, 2, (1,))),
        (SLURM | A_GPU_EACH | {"CUDA_VISIBLE_DEVICES": "1"}, Launch("node003:61443", 4, 2)),
        # A batch script that starts Python without srun is alone, as is the only task of a step.
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM | {"SLURM_STEP_ID": "2"}, Launch("node003:63461", 4, 2)),
        (OPEN_MPI, Launch("localhost:61440", 4, 3, (3,))),
        # Another run of mpirun on the same machine has another port.
        (OPEN_MPI | {"PMIX_NAMESPACE": "2571632641"}, Launch("localhost:63311", 4, 3, (3,))),
        (OPEN_MPI | {"PMIX_NAMESPACE": "2571632642"}, Launch("localhost:63221", 4, 3, (3,))),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "JAX_COORDINATOR_ADDRESS": "a:1"},
            Launch("a:1", 4, 3),
        ),
        (KUBERNETES, Launch("train-host-0-0.train:1234", 8, 5)),
        (KUBERNETES | {"JAX_PROCESS_ID": "6"}, Launch("train-host-0-0.train:1234", 8, 6)),
        # Any indexed job has an index.
        ({"JOB_COMPLETION_INDEX": "5"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Launch()),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
    ],
)
def test_launchers_identify_a_process(environment, expected):
    assert detect(environment) == expected


def test_flags_take_precedence_over_the_environment():
    assert detect({}, "[::1]:5", 2, 0) == Launch("[::1]:5", 2, 0)
    assert detect(KUBERNETES, num_processes=9, process_id=8).process_id == 8
    assert detect(SLURM, "other:1").coordinator == "other:1"
    assert detect({}, num_processes=1) is None


@pytest.mark.parametrize(
    "environment, flags, message",
    [
        ({}, {"process_id": 1}, "--coordinator=HOST:PORT.* and --num_processes"),
        ({}, {"coordinator": "a:1", "num_processes": 2}, "--process_id"),
        ({}, {"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "process_id is 2"),
        ({}, {"coordinator": "a", "num_processes": 2, "process_id": 1}, "'a'.*HOST:PORT"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, {}, "JAX_COORDINATOR_ADDRESS"),
        (KUBERNETES | {"JAX_NUM_PROCESSES": "all"}, {}, "JAX_NUM_PROCESSES is 'all'"),
    ],
)
def test_missing_and_wrong_values_are_named(environment, flags, message):
    with pytest.raises(ConfigError, match=message):
        detect(environment, **flags)


def test_a_directory_that_processes_do_not_share_is_refused(tmp_path):
    """As when every machine has its own disk under the same name."""
    places = [tmp_path / "a", tmp_path / "a", tmp_path / "b"]

    def hold(processes):
        with workdir.held(places[processes.index], processes):
            return "held"

    (tmp_path / "b").mkdir()
    errors = together(hold)
    assert all(type(error) is FileError for error in errors)
    assert all("file system shared by all machines" in str(error) for error in errors)
    assert not (tmp_path / "a").exists() and not list((tmp_path / "b").iterdir())

    places[2] = tmp_path / "a"
    assert together(hold) == ["held"] * 3


def test_the_first_process_locks_the_directory_for_all(tmp_path):
    def hold(processes):
        with workdir.held(tmp_path, processes):
            return "held"

    with workdir.held(tmp_path):
        first, second, _ = together(hold)
    assert type(first) is type(second) is FileError
    assert str(second) == f"process 0: {first}" and "in use for training" in str(first)
