"""Conversion between a process's numpy arrays and global device arrays."""

import json
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regionclip_jax.sharding.barriers import barrier
from regionclip_jax.sharding.mesh import DATA_AXIS, FSDP_AXIS

Tree = TypeVar("Tree")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding along the first axis, over all devices in their order."""
    return NamedSharding(mesh, PartitionSpec((DATA_AXIS, FSDP_AXIS)))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the replicated sharding: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_global_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Make global arrays, sharded along the first axis, from this process's rows of a batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def shard(tree: Tree, shardings: Tree) -> Tree:
    """Shard arrays that every process holds as a whole: each device gets its part.

    The parts are copies. A device array may alias its source buffer, and a step that donates its
    state would then delete the caller's arrays.
    """

    def shard_leaf(leaf, sharding):
        array = np.asarray(leaf)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: np.array(array[index])
        )

    return jax.tree.map(shard_leaf, tree, shardings)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Copy every leaf to every device, as ``shard``."""
    return shard(tree, jax.tree.map(lambda _: replicated_sharding(mesh), tree))


def abstract_arrays(tree: Tree, shardings: Tree) -> Tree:
    """Return the abstract values (shape, type, sharding) of a tree of arrays, for a restore."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def gather(tree: Tree) -> Tree:
    """Return global arrays as whole numpy arrays in every process; every process must call it."""

    def fetch(leaf):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


def local_rows(tree: Tree) -> Tree:
    """Return this process's rows of global arrays sharded along their first axis, as numpy."""
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
    """Join every process's list of JSON values, in process order."""
    if jax.process_count() == 1:
        return records
    barrier("gather records")
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
