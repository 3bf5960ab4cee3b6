"""The mesh of devices a job runs on."""

import jax
from jax.sharding import AxisType, Mesh

DATA_AXIS = "data"


def make_mesh(batch_size: int) -> Mesh:
    """All devices on one ``data`` axis.

    Args:
        batch_size: of the global batch, which is split over the devices.

    Raises:
        ValueError: the batch does not divide among the devices.
    """
    devices = jax.devices()
    if batch_size % len(devices):
        raise ValueError(
            f"batch size {batch_size} does not divide among {len(devices)} devices "
            f"({devices[0].platform}); choose a multiple of {len(devices)}"
        )
    # Auto: the compiler chooses the collectives (jax.make_mesh defaults to explicit axis types).
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,))
