"""The mesh of a job's devices: the same two axes for one chip and for a pod."""

import collections
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

# A batch is sharded over both; parameters and optimizer state over the second.
DATA_AXIS, FSDP_AXIS = "data", "fsdp"


def make_mesh(*, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices as ``data`` x ``fsdp``.

    Devices stay in the order of their processes. A process then has contiguous rows of a batch, as
    in the data pipeline. A batch has the same order on any number of processes. Parameters are
    sharded over neighbours, which have the fastest link.

    Args:
        fsdp: devices that share one copy of the parameters.
        devices: devices to use; None for all.

    Raises:
        ValueError: ``fsdp`` does not divide the number of devices.
    """
    devices = sorted(
        jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id)
    )
    count = len(devices)
    if count % fsdp:
        fitting = [size for size in range(1, count + 1) if count % size == 0]
        raise ValueError(
            f"{fsdp} does not divide the {count} devices ({devices[0].platform}) of this run; "
            f"choose one of {fitting}"
        )
    grid = np.array(devices).reshape(-1, fsdp)
    # Auto: the compiler chooses the collectives.
    return Mesh(grid, (DATA_AXIS, FSDP_AXIS), axis_types=(AxisType.Auto,) * 2)


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Check that a global batch divides equally among devices and processes.

    Raises:
        ValueError: the batch does not divide, or processes have unequal numbers of devices.
    """
    of_process = collections.Counter(device.process_index for device in mesh.devices.flat)
    (fewest, low), (most, high) = (f(of_process.items(), key=lambda i: i[1]) for f in (min, max))
    if low != high:
        raise ValueError(
            f"process {fewest} has {low} devices, process {most} has {high}, but each reads an "
            "equal part of the batch; start them with equally many"
        )
    count = mesh.size
    if batch_size % count:
        below = batch_size // count * count
        near = " or ".join(str(size) for size in (below, below + count) if size)
        raise ValueError(
            f"batch size {batch_size} does not divide among {count} devices "
            f"({mesh.devices.flat[0].platform}); choose a multiple of {count}, such as {near}"
        )
