"""The one crossing between a process's numpy arrays and global device arrays."""

import json
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regionclip_jax.sharding.mesh import DATA_AXIS

Tree = TypeVar("Tree")


def to_global_batch(batch: Tree, mesh: Mesh) -> Tree:
    """This process's rows of a batch as one global array a leaf, split along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every leaf on every device.

    A real copy: a ``device_put`` may alias the buffer it is given, and a step that donates its
    state would then delete the caller's arrays.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(np.array(x), sharding), tree)


def replicated_like(tree: Tree, mesh: Mesh) -> Tree:
    """Shapes, types and replicated shardings of a tree of arrays or shapes, for a restore."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def local_rows(tree: Tree) -> Tree:
    """This process's rows of global arrays that are split along their first axis, as numpy."""
    return jax.tree.map(
        lambda x: (
            np.concatenate(
                [np.asarray(s.data) for s in sorted(x.addressable_shards, key=_first_row)]
            )
            if not x.is_fully_replicated
            else np.asarray(x)
        ),
        tree,
    )


def _first_row(shard) -> int:
    return shard.index[0].start or 0


def gather_json(records: list) -> list:
    """Every process's list of JSON values, joined in process order."""
    if jax.process_count() == 1:
        return records
    encoded = np.frombuffer(json.dumps(records).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([encoded.size]))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: encoded.size] = encoded
    rows = multihost_utils.process_allgather(padded)
    parts = [
        json.loads(row[: int(n)].tobytes())
        for row, n in zip(rows, lengths.reshape(-1), strict=True)
    ]
    return [record for part in parts for record in part]
