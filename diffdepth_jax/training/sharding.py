"""One named mesh over all devices, passed explicitly and never global; models do not use it.

Every device gets a part of each batch. Along the axis `fsdp`, devices also share one copy of the
parameters, their average and the optimiser state (fully sharded data parallelism, as in ZeRO:
Rajbhandari et al. 2020): each holds a part, and XLA gathers a layer when it is needed.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffdepth_jax.errors import ConfigError

AXES = ("data", "fsdp")
_DIVIDED = 4096  # elements; gathering smaller arrays costs more than replicating them


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged.

    Attributes:
        data: number of device groups, each with a whole copy of the state; None for as many as
            `fsdp` allows.
        fsdp: devices in a group, which share that copy; 1 for a copy on every device.
    """

    data: int | None = None
    fsdp: int = 1

    def __post_init__(self) -> None:
        if self.fsdp < 1 or (self.data is not None and self.data < 1):
            raise ValueError(f"data is {self.data} and fsdp {self.fsdp}; both must be at least 1")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `data` and `fsdp` over the given devices (default: those of all processes).

    A process's devices are adjacent, so that its part of a batch is contiguous.

    The axes have type Auto: with Explicit, the default of `jax.make_mesh`, the sampler's scan would
    have to declare its carry's sharding.

    Raises:
        ConfigError: if the devices cannot be arranged this way.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    data = count // config.fsdp if config.data is None else config.data
    if data * config.fsdp != count:
        wanted = f"mesh.fsdp {config.fsdp}"
        if config.data is not None:
            wanted = f"mesh.data {config.data} x {wanted}"
        raise ConfigError(f"{wanted} does not match the {count} devices of this run")
    types = (AxisType.Auto,) * 2
    owners = [device.process_index for device in devices]
    if len(set(owners)) == 1:
        return jax.make_mesh((data, config.fsdp), AXES, axis_types=types, devices=devices)
    if len({owners.count(owner) for owner in owners}) > 1:
        raise ConfigError(
            f"the processes of this run have {[owners.count(each) for each in sorted({*owners})]} "
            "devices: all must have the same number"
        )
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.reshape(devices, (data, config.fsdp)), AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis is divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def shared_batch(batch: Mapping[str, Any], mesh: Mesh) -> Mapping[str, Any]:
    """The arrays of a whole batch, assembled from each process's part.

    In a single process they are returned unchanged: the jitted step distributes NumPy arrays
    itself, in a tenth of `device_put`'s time.

    Args:
        batch: this process's arrays, which follow those of the previous processes in the batch.
        mesh: the run's mesh.
    """
    if not mesh.is_multi_process:
        return batch
    over = over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(over, array) for name, array in batch.items()
    }


class Agreement:
    """The maximum of a number over all processes, available a few steps later.

    This costs a few bytes per step, and no process waits for the device.

    Args:
        mesh: the run's mesh.
        lag: delay in steps.
    """

    def __init__(self, mesh: Mesh, lag: int = 2) -> None:
        self._mesh, self._lag = mesh, lag
        self._waiting: collections.deque[jax.Array] = collections.deque()
        self._greatest = jax.jit(jnp.max, out_shardings=replicated(mesh))

    def greatest(self, number: int, *, now: bool = False) -> int:
        """Passes this process's number, 0 or more, in every step.

        Returns:
            The maximum that any process passed `lag` calls ago; with `now`, including all calls
            since, which waits for the device. All processes get the same result.
        """
        if not self._mesh.is_multi_process:
            return number
        mine = np.full(len(self._mesh.local_devices), number, np.int32)
        numbers = jax.make_array_from_process_local_data(over_batch(self._mesh), mine)
        self._waiting.append(self._greatest(numbers))
        found = 0
        while self._waiting and (now or len(self._waiting) > self._lag):
            found = max(found, int(self._waiting.popleft()))
        return found


def of_state(state: Any, mesh: Mesh) -> Any:
    """The sharding of each array in a state, given its shapes.

    An array is divided along its longest axis that is divisible by `fsdp`; small arrays, and those
    without such an axis, are replicated.
    """
    parts = mesh.shape["fsdp"]

    def sharding(array: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(array.shape) if size % parts == 0]
        if parts == 1 or not divisible or math.prod(array.shape) < _DIVIDED:
            return replicated(mesh)
        longest = max(divisible, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(sharding, state)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ConfigError unless each of `accumulate` parts of a batch is divisible by the
    devices."""
    if batch_size % (mesh.size * accumulate):
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {batch_size} cannot be divided{parts} among {mesh.size} devices: use a "
            f"multiple of {mesh.size * accumulate}"
        )


def on_one_device(tree: Any, mesh: Mesh) -> Any:
    """The complete arrays of a tree on the first device."""
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), whole)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays, for restoring a checkpoint."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        tree,
        shardings,
    )
