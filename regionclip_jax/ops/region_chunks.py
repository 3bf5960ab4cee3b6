"""Regions a few at a time: what is made of them exists for one chunk only."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def map_regions(
    function: Callable,
    regions: Tree,
    regions_per_chunk: int | None,
    *,
    unroll: bool = False,
):
    """``function(regions)``, of so many regions of each picture at once; rematerialised.

    The chunks run along the regions, never along the pictures, so a batch that is split over
    devices stays split. Beside arguments and results one chunk's intermediates exist at a time,
    forward and backward.

    Args:
        function: of a tree of ``[B, r, ...]``, gives a tree of ``[B, r, ...]``; what it gives for a
            region depends on that region alone.
        regions: tree of ``[B, R, ...]``.
        regions_per_chunk: the largest r; None means all R in one, without rematerialisation.
        unroll: as code instead of a loop.
    """
    num_regions = jax.tree.leaves(regions)[0].shape[1]
    num_chunks = -(-num_regions // (regions_per_chunk or max(num_regions, 1)))
    if num_chunks <= 1:
        return function(regions)
    # Equal chunks: with the whole picture as region 101, chunks of 25 would pad to 125.
    size = -(-num_regions // num_chunks)

    def split(x):
        added = num_chunks * size - num_regions
        padded = jnp.pad(x, [(0, 0), (0, added)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(x.shape[0], num_chunks, size, *x.shape[2:]).swapaxes(0, 1)

    def join(x):
        x = x.swapaxes(0, 1)
        return x.reshape(x.shape[0], num_chunks * size, *x.shape[3:])[:, :num_regions]

    _, out = jax.lax.scan(
        lambda carry, chunk: (carry, jax.checkpoint(function)(chunk)),
        None,
        jax.tree.map(split, regions),
        unroll=num_chunks if unroll else 1,
    )
    return jax.tree.map(join, out)
