"""One named mesh over all devices, passed down and never global; models know nothing of it.

Every device gets its share of each batch. Along the axis `fsdp` the devices also share one copy of
the parameters, their average and the optimiser's arrays (fully sharded data parallelism, as in
ZeRO: Rajbhandari et al. 2020): each holds a part, and XLA gathers a layer where it is computed.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffdepth_jax.errors import ConfigError

AXES = ("data", "fsdp")
_DIVIDED = 4096  # Elements; to gather smaller arrays costs more than to hold them.


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged.

    Attributes:
      data: how many groups of devices there are, each with a whole copy of the state; None for as
        many as `fsdp` leaves.
      fsdp: devices in a group, among which that copy is divided; 1 for a copy on every device.
    """

    data: int | None = None
    fsdp: int = 1

    def __post_init__(self) -> None:
        if self.fsdp < 1 or (self.data is not None and self.data < 1):
            raise ValueError(
                f"data is {self.data} and fsdp {self.fsdp}; both count devices, from 1 on"
            )


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the axes `data` and `fsdp` over the given devices (default: all).

    The axes are of type Auto: with Explicit, the default of `jax.make_mesh`, the sampler's scan
    would have to name the sharding of its carry.

    Raises:
      ConfigError: if the devices cannot be arranged so.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    data = count // config.fsdp if config.data is None else config.data
    if data * config.fsdp != count:
        wanted = f"mesh.fsdp {config.fsdp}"
        if config.data is not None:
            wanted = f"mesh.data {config.data} x {wanted}"
        raise ConfigError(f"{wanted} does not fit the {count} devices of this run")
    return jax.make_mesh(
        (data, config.fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis is divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def of_state(state: Any, mesh: Mesh) -> Any:
    """The sharding of each array of a state, given its shapes.

    An array is divided along the longest of its axes that `fsdp` divides; small ones, and those
    with no such axis, are replicated.
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
    """Raises ConfigError unless each of `accumulate` parts of a batch divides over the devices."""
    if batch_size % (mesh.size * accumulate):
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {batch_size} cannot be divided{parts} over {mesh.size} devices: "
            f"use a multiple of {mesh.size * accumulate}"
        )


def on_one_device(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a tree, whole, on the first device."""
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), whole)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays, as a checkpoint is restored to."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        tree,
        shardings,
    )
