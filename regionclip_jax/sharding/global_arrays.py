"""The one crossing between a process's numpy arrays and global device arrays."""

import json
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regionclip_jax.sharding.mesh import DATA_AXIS, FSDP_AXIS
from regionclip_jax.sharding.waiting import wait_for_all

Tree = TypeVar("Tree")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split along the first axis, over all devices in their order."""
    return NamedSharding(mesh, PartitionSpec((DATA_AXIS, FSDP_AXIS)))


def whole_everywhere(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_global_batch(batch: Tree, mesh: Mesh) -> Tree:
    """This process's rows of a batch as one global array a leaf, split along the first axis."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def place(tree: Tree, shardings: Tree) -> Tree:
    """Arrays that every process holds as a whole, as global arrays: each device gets its share.

    Real copies: a device array may alias the buffer it is made of, and a step that donates its
    state would then delete the caller's arrays.
    """

    def split(leaf, sharding):
        array = np.asarray(leaf)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: np.array(array[index])
        )

    return jax.tree.map(split, tree, shardings)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every leaf on every device, as ``place``."""
    return place(tree, jax.tree.map(lambda _: whole_everywhere(mesh), tree))


def described(tree: Tree, shardings: Tree) -> Tree:
    """Shapes, types and shardings of a tree of arrays or shapes, for a restore."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def gather(tree: Tree) -> Tree:
    """Global arrays as numpy arrays, whole, in every process; every process calls it."""

    def fetch(leaf):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


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
    wait_for_all("gather records")
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
