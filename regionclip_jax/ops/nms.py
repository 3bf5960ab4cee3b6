"""Greedy non-maximum suppression, exact, on padded boxes, with fixed shapes.

Source: docs/reference/localizers.md#proposals, docs/reference/detection.md#inference. Boxes are
taken by descending score (ties by lower index). A box is kept unless its IoU with a box kept before
exceeds the threshold. The kept set is bit for bit that of the reference, which compares a float32
IoU with a float64 threshold, strictly. An IoU of exactly 1/2 is not suppressed at 0.5; one of
float32(0.3) > 0.3 is suppressed at 0.3. The reference separates classes by shifting their boxes
apart, which loses bits of the IoU. Here groups are compared, so decisions may differ if an IoU
equals the threshold to within that loss.

Algorithm: boxes are sorted and taken in tiles. A tile is compared with the boxes kept so far, then
settled within itself. ``keep <- alive & no kept earlier one overlaps`` converges to the greedy
solution, in as many rounds as the longest chain of suppressions. The loop ends when enough boxes
are kept, so neither an N x N matrix nor N steps are needed.

A GPU's host waits after each round of a loop with a data-dependent end. On GPUs, tiles are larger,
compared with all kept boxes at once, and settled several rounds at a time. For 12,000 boxes this
takes 10 waits instead of 117.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops.backend import target_backend
from regionclip_jax.ops.boxes import exact_threshold, intersection_and_union, iou_exceeds
from regionclip_jax.structures import AnyArray, Number


class _Way(NamedTuple):
    """Parameters of the loops over tiles; they change no result."""

    # Rows compared at once. From 128 to 512 the time on a CPU hardly changes.
    tile: int = 256
    # Rounds of settling between two tests for convergence.
    rounds: int = 1
    # Compare a tile with the kept boxes in a loop over the tiles in use, not with all rows at once.
    loop_over_kept: bool = True


def _way() -> _Way:
    return _Way(1024, 4, False) if target_backend() == "gpu" else _Way()


# Candidates sorted at once by ``nms_per_class``: the outputs are nearly always among the first.
_CHUNK = 4096


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    mask: Bool[Array, " N"],
    *,
    iou_threshold: Number,
    max_outputs: int,
) -> tuple[Int[Array, " K"], Bool[Array, " K"]]:
    """Return the first ``max_outputs`` boxes that greedy NMS keeps, by descending score.

    Args:
        boxes: xyxy in any one frame.
        scores: any numbers except NaN.
        mask: rows that exist; the others neither suppress nor are returned.
        iou_threshold: between 0 and 1; an array comes from ``exact_threshold``.
        max_outputs: K.

    Returns:
        Indices into ``boxes``, and their mask: real rows first. Masked indices are 0.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """
    groups = jnp.zeros(scores.shape, jnp.int32)
    return nms_by_group(
        boxes, scores, groups, mask, iou_threshold=iou_threshold, max_outputs=max_outputs
    )


def nms_by_group(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    groups: Int[AnyArray, " N"],
    mask: Bool[Array, " N"],
    *,
    iou_threshold: Number,
    max_outputs: int,
) -> tuple[Int[Array, " K"], Bool[Array, " K"]]:
    """Apply ``nms``, but boxes suppress only boxes of their own group (class or pyramid level)."""
    threshold = exact_threshold(iou_threshold)
    return _sorted_nms(boxes, scores, groups, mask, threshold, max_outputs, _way())


def nms_per_class(
    boxes: Float[Array, "R 4"],
    scores: Float[Array, "R C"],
    mask: Bool[Array, " R"],
    *,
    score_threshold: Number,
    iou_threshold: Number,
    max_outputs: int,
) -> tuple[Int[Array, " K"], Int[Array, " K"], Float[Array, " K"], Bool[Array, " K"]]:
    """Apply NMS within each class to boxes that all classes share; return the best of all classes.

    The R x C candidates are not sorted as a whole. Chunks of the best remaining ones are taken
    until enough are kept, so the result is exact and nearly always costs one chunk.

    Args:
        boxes: xyxy, one for all classes.
        scores: of each box for each class.
        mask: rows that exist.
        score_threshold: candidates need more, strictly.
        iou_threshold: between 0 and 1; an array comes from ``exact_threshold``.
        max_outputs: K.

    Returns:
        Index into ``boxes``, class, score and mask, by descending score; ties by lower box, then
        lower class. Masked rows hold zeros.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """
    threshold = exact_threshold(iou_threshold)
    return _nms_per_class(boxes, scores, mask, score_threshold, threshold, max_outputs, _way())


@functools.partial(jax.jit, static_argnames=("max_outputs", "way"))
def _nms_per_class(boxes, scores, mask, score_threshold, iou_threshold, max_outputs, way):
    num_classes = scores.shape[1]
    candidates = (mask[:, None] & (scores > score_threshold)).reshape(-1)
    flat_scores = scores.reshape(-1)
    chunk = min(_CHUNK, candidates.shape[0])
    if chunk == 0:
        nothing = jnp.zeros(max_outputs, jnp.int32)
        return nothing, nothing, nothing.astype(scores.dtype), nothing > 0

    def unfinished(state):
        candidates, kept = state
        return (kept.count < max_outputs) & candidates.any()

    def take_chunk(state):
        candidates, kept = state
        _, best = jax.lax.top_k(jnp.where(candidates, flat_scores, -jnp.inf), chunk)
        rows = _Rows(boxes[best // num_classes], best % num_classes, best, candidates[best])
        kept = _visit(rows, kept, iou_threshold, max_outputs, way)
        return candidates.at[best].set(False), kept

    state = (candidates, _nothing_kept(max_outputs, way))
    _, kept = jax.lax.while_loop(unfinished, take_chunk, state)
    best, real = _outputs(kept, max_outputs)
    best_scores = jnp.where(real, flat_scores[best], 0)
    return best // num_classes, best % num_classes, best_scores, real


class _Rows(NamedTuple):
    """Boxes by descending score."""

    boxes: Float[Array, "N 4"]
    groups: Int[Array, " N"]
    indices: Int[Array, " N"]
    alive: Bool[Array, " N"]


class _Kept(NamedTuple):
    """Boxes kept so far: ``count`` rows, then zeros up to a whole number of tiles.

    The count may exceed the number of rows. A box of zeros intersects nothing.
    """

    boxes: Float[Array, "P 4"]
    groups: Int[Array, " P"]
    indices: Int[Array, " P"]
    count: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("max_outputs", "way"))
def _sorted_nms(boxes, scores, groups, mask, iou_threshold, max_outputs, way):
    order = jnp.argsort(jnp.where(mask, scores, -jnp.inf), stable=True, descending=True)
    rows = _Rows(boxes[order], groups[order], order.astype(jnp.int32), mask[order])
    kept = _visit(rows, _nothing_kept(max_outputs, way), iou_threshold, max_outputs, way)
    return _outputs(kept, max_outputs)


def _nothing_kept(max_outputs: int, way: _Way) -> _Kept:
    size = _whole_tiles(max_outputs, way.tile)
    integers = jnp.zeros(size, jnp.int32)
    return _Kept(jnp.zeros((size, 4)), integers, integers, jnp.int32(0))


def _outputs(kept: _Kept, max_outputs: int):
    real = jnp.arange(max_outputs) < kept.count
    return jnp.where(real, kept.indices[:max_outputs], 0), real


def _whole_tiles(num_rows: int, tile: int) -> int:
    """Number of rows in the fewest tiles (at least one) that hold ``num_rows``."""
    return max(-(-num_rows // tile), 1) * tile


def _visit(rows: _Rows, kept: _Kept, iou_threshold: Number, max_outputs: int, way: _Way) -> _Kept:
    """Add the rows that NMS keeps; stop at ``max_outputs`` or more."""
    num_rows = rows.boxes.shape[0]
    last_alive = jnp.where(rows.alive, jnp.arange(1, num_rows + 1), 0).max(initial=0)
    padding = _whole_tiles(num_rows, way.tile) - num_rows
    rows = jax.tree.map(lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)), rows)

    def unfinished(state):
        start, kept = state
        return (start < last_alive) & (kept.count < max_outputs)

    def take_tile(state):
        start, kept = state
        tile = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, way.tile), rows)
        return start + way.tile, _add_tile(tile, kept, iou_threshold, way)

    _, kept = jax.lax.while_loop(unfinished, take_tile, (jnp.int32(0), kept))
    return kept


def _add_tile(tile: _Rows, kept: _Kept, iou_threshold: Number, way: _Way) -> _Kept:
    def suppressing(boxes, groups):
        """[rows of ``boxes``, tile]: True for pairs that overlap too much."""
        overlap = iou_exceeds(*intersection_and_union(boxes, tile.boxes), iou_threshold)
        return overlap & (groups[:, None] == tile.groups)

    def compare_with_kept(block, alive):
        boxes, groups = (
            jax.lax.dynamic_slice_in_dim(x, block * way.tile, way.tile)
            for x in (kept.boxes, kept.groups)
        )
        return alive & ~suppressing(boxes, groups).any(0)

    if way.loop_over_kept:
        num_blocks = jnp.minimum(-(-kept.count // way.tile), kept.boxes.shape[0] // way.tile)
        alive = jax.lax.fori_loop(0, num_blocks, compare_with_kept, tile.alive)
    else:
        alive = tile.alive & ~suppressing(kept.boxes, kept.groups).any(0)

    earlier = jnp.triu(jnp.ones((way.tile, way.tile), bool), 1)
    conflicts = suppressing(tile.boxes, tile.groups) & earlier

    def settle(state):
        settled, _ = state
        for _ in range(way.rounds):
            keep, settled = settled, alive & ~(conflicts & settled[:, None]).any(0)
        return settled, (settled != keep).any()

    keep, _ = jax.lax.while_loop(lambda state: state[1], settle, (alive, alive.any()))
    # Rows that are not kept get an index beyond the end, so their writes are dropped.
    end = kept.boxes.shape[0]
    places = jnp.where(keep, kept.count + jnp.cumsum(keep) - 1, end)
    return _Kept(
        kept.boxes.at[places].set(tile.boxes, mode="drop"),
        kept.groups.at[places].set(tile.groups, mode="drop"),
        kept.indices.at[places].set(tile.indices, mode="drop"),
        kept.count + keep.sum(dtype=jnp.int32),
    )
