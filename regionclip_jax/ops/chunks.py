"""Rows in chunks: intermediate values exist for one chunk at a time.

Rows are regions of an image, or the tokens that attend to it.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def map_chunks(
    function: Callable,
    rows: Tree,
    rows_per_chunk: int | None,
    *,
    unroll: bool = False,
):
    """Apply ``function`` to at most ``rows_per_chunk`` rows of each image at a time.

    The chunks run along the rows, never along the images, so a sharded batch stays sharded. The
    function is rematerialised: beside arguments and results, the intermediates of one chunk exist
    at a time, forward and backward.

    Args:
        function: maps a tree of ``[B, r, ...]`` to a tree of ``[B, r, ...]``; each result row
            depends on its own row alone.
        rows: tree of ``[B, R, ...]``.
        rows_per_chunk: the largest r; None means one chunk of R, without rematerialisation.
        unroll: unroll the loop.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[1]
    num_chunks = -(-num_rows // (rows_per_chunk or max(num_rows, 1)))
    if num_chunks <= 1:
        return function(rows)
    # Equal chunks pad less: with the whole image as region 101, chunks of 25 would pad to 125.
    size = -(-num_rows // num_chunks)

    def split(x):
        added = num_chunks * size - num_rows
        padded = jnp.pad(x, [(0, 0), (0, added)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(x.shape[0], num_chunks, size, *x.shape[2:]).swapaxes(0, 1)

    def join(x):
        x = x.swapaxes(0, 1)
        return x.reshape(x.shape[0], num_chunks * size, *x.shape[3:])[:, :num_rows]

    _, out = jax.lax.scan(
        lambda carry, chunk: (carry, jax.checkpoint(function)(chunk)),
        None,
        jax.tree.map(split, rows),
        unroll=num_chunks if unroll else 1,
    )
    return jax.tree.map(join, out)
