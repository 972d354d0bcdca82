"""Which part of a run a process generates."""

from collections.abc import Mapping

from diffdepth_jax.adverse.manifest import Shard
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.evaluation.run.dataset import parse_shard

_TASK = "SLURM_ARRAY_TASK_"


def chosen(text: str | None, environment: Mapping[str, str]) -> Shard | None:
    """(index, count) from `--shard`, or from the SLURM job array that the process belongs to.

    Args:
        text: the flag, for example `0/4`; None if it was not given.
        environment: may have SLURM's variables. Arrays may start at any number, but must be
            consecutive.

    Raises:
        ConfigError: for any other text, or an array with gaps.
    """
    if text is not None:
        return parse_shard(text)
    if _TASK + "ID" not in environment or _TASK + "COUNT" not in environment:
        return None
    names = [_TASK + name for name in ("ID", "COUNT", "MIN", "STEP")]
    given = [environment.get(name, default) for name, default in zip(names, "0100", strict=True)]
    given[3] = environment.get(names[3], "1")
    shown = ", ".join(f"{name}={value}" for name, value in zip(names, given, strict=True))
    if not all(value.isdigit() for value in given):
        raise ConfigError(f"{shown}: these are not numbers; set --shard=I/N instead")
    task, count, first, step = map(int, given)
    if step != 1 or not 0 <= task - first < count:
        raise ConfigError(
            f"{shown}: only arrays of consecutive tasks are supported, such as --array=0-7; "
            "otherwise set --shard=I/N"
        )
    return task - first, count
