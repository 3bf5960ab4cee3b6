"""RoIAlign: fixed-size crops of a feature map at box positions, by bilinear sampling.

Source: docs/reference/roi_align.md#sampling-points (torchvision's compiled kernel). A sample
contributes nothing when it lies beyond -1 or beyond the map's length. Otherwise it is clamped into
the map, and each bin is the mean over its samples. With ``sampling_ratio=0`` the number of samples
of a bin is ``ceil(size / P)``, per box and per axis; an empty or inverted box then has none and
gives zeros. Bilinear sampling is separable, so there are three exact implementations:

``matmul``       one matrix per box and axis, ``out = W_y F W_x^T``, columns first. For TPUs, and
                 for small maps.
``matmul_rows``  the same with rows first, in the layout of the libraries of GPUs.
``gather``       one box at a time, one row read per (sample, corner). For large maps on CPUs, where
                 it is 4 to 9 times faster than the matrices.
``auto``         picks by the backend and the size of the map when the function is traced.

Gradients flow to the features only; boxes get none, as in torchvision.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from regionclip_jax.ops.backend import target_backend

# Below this many cells the matrices are small enough to be faster on CPUs too.
_GATHER_MIN_CELLS = 1024


def roi_align(
    features: Float[Array, "B h w channels"],
    boxes: Float[Array, "B R 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float,
    *,
    sampling_ratio: int = 0,
    aligned: bool = True,
    extents: Int[Array, "B 2"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "B R P Q channels"]:
    """Crop ``boxes`` out of ``features``.

    Args:
        features: feature maps, NHWC.
        boxes: xyxy in pixels of the canvas.
        output_size: P, or (P, Q) for height and width.
        spatial_scale: cells per canvas pixel, e.g. 1/16.
        sampling_ratio: samples per bin and axis; 0 chooses ``ceil(size / P)`` per box.
        aligned: shift by half a cell (detectron2's ROIAlignV2); False also widens boxes to one
            cell.
        extents: (height, width) in cells of each image's own part of its map, the limit of samples;
            None means all of it.
        implementation: "matmul", "matmul_rows", "gather" or "auto".

    Raises:
        ValueError: unknown implementation.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    # The barrier keeps XLA from folding boxes known at compile time into rounded reciprocals, which
    # would defeat ``_divide``.
    boxes = jax.lax.optimization_barrier(jax.lax.stop_gradient(boxes.astype(jnp.float32)))
    implementation = _named(implementation, features)
    extents = _whole(features) if extents is None else extents
    align = _IMPLEMENTATIONS[implementation]
    with jax.named_scope("roi_align"):
        return align(features, boxes, extents, size, spatial_scale, sampling_ratio, aligned)


def map_for_many(
    features: Float[Array, "B h w channels"],
    extents: Int[Array, "B 2"] | None,
    implementation: str = "auto",
) -> tuple[Float[Array, "B H W channels"], Int[Array, "B 2"]]:
    """Return the map and extents for several calls of ``roi_align``, e.g. for chunks of the boxes.

    The implementation's preparation of the map is done once. No crop changes.

    Raises:
        ValueError: unknown implementation.
    """
    extents = _whole(features) if extents is None else extents
    if _named(implementation, features) == "matmul_rows":
        step = _multiple(features.dtype)
        features = _padded(features, {1: step, 2: step})
    return features, extents


def _whole(features) -> Int[Array, "B 2"]:
    num_images, height, width, _ = features.shape
    return jnp.tile(jnp.array([[height, width]], jnp.int32), (num_images, 1))


def _named(implementation: str, features) -> str:
    """Return the name of an implementation; for "auto" the backend's choice."""
    if implementation == "auto":
        backend, cells = target_backend(), features.shape[1] * features.shape[2]
        if backend == "gpu":
            return "matmul_rows"
        return "gather" if backend == "cpu" and cells >= _GATHER_MIN_CELLS else "matmul"
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f"roi_align: implementation {implementation!r}; expected one of "
            f"{[*_IMPLEMENTATIONS, 'auto']}"
        )
    return implementation


def _bins(low, high, num_bins: int, scale: float, sampling_ratio: int, aligned: bool):
    """Start, bin length and samples per bin along one axis, in cells; shapes as ``low``."""
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset
    size = high * scale - offset - start
    if not aligned:
        size = jnp.maximum(size, 1.0)
    length = _divide(size, float(num_bins))
    if sampling_ratio > 0:
        count = jnp.full(size.shape, sampling_ratio, jnp.int32)
    else:
        # Correct even if a backend's division is not correctly rounded.
        samples = jnp.ceil(length)
        samples = samples + (size > samples * num_bins)
        samples = samples - (size <= (samples - 1) * num_bins)
        count = jnp.maximum(samples, 0).astype(jnp.int32)
    return start, length, count


def _divide(numerator, denominator):
    """Divide truly, also under jit.

    XLA turns division by a constant or a broadcast scalar into a multiplication with its rounded
    reciprocal. That makes ceil(size / P) wrong at exact multiples of P and moves samples across the
    map's edge. A divisor that looks different for every element prevents it.
    Source: docs/reference/roi_align.md#trap-1-counts-under-jit.
    """
    return numerator / jnp.where(numerator == numerator, denominator, 1.0)


def _sample_positions(start, length, count, sample, bins):
    """Coordinates of sample number ``sample`` in every bin."""
    count = jnp.maximum(count, 1).astype(jnp.float32)
    into = (sample + 0.5) * length
    within = _divide(
        jnp.broadcast_to(into, jnp.broadcast_shapes(into.shape, jnp.shape(bins))), count
    )
    return start + bins * length + within


# --- matmul ---------------------------------------------------------------------------------------


# Samples of one bin are at least half a cell apart; those that touch a cell are within two cells.
_SAMPLES_PER_CELL = 6


def _interpolation_matrix(low, high, extent, num_cells, num_bins, scale, sampling_ratio, aligned):
    """Weights [..., num_bins, num_cells] of every cell in the mean of every bin.

    Samples end at ``extent``, one for each image. A box far larger than the map has any number of
    samples, but few of them touch one cell. The loop starts at the first that can, so its length is
    fixed.
    """
    start, length, count = (
        x[..., None, None] for x in _bins(low, high, num_bins, scale, sampling_ratio, aligned)
    )
    bins = jnp.arange(num_bins, dtype=jnp.float32)[:, None]
    cells = jnp.arange(num_cells, dtype=jnp.float32)
    extent = extent.astype(jnp.float32)[:, None, None, None]
    if sampling_ratio > 0:
        first, num_samples = 0.0, sampling_ratio
    else:
        apart = length / jnp.maximum(count, 1).astype(jnp.float32)
        before = (cells - 1 - start - bins * length) / jnp.where(apart > 0, apart, 1.0) - 0.5
        first = jnp.clip(jnp.floor(before), 0, count)
        num_samples = _SAMPLES_PER_CELL
    weights = jnp.zeros((*start.shape[:-2], num_bins, num_cells))
    for index in range(num_samples):
        at = _sample_positions(start, length, count, first + index, bins)
        inside = (at >= -1.0) & (at <= extent) & (first + index < count)
        hat = jnp.maximum(0.0, 1.0 - jnp.abs(jnp.clip(at, 0.0, extent - 1.0) - cells))
        weights = weights + jnp.where(inside, hat, 0.0)
    return weights / jnp.maximum(count, 1).astype(jnp.float32)


def _align_by_matmul(features, boxes, extents, *how):
    rows, columns = _interpolation_matrices(features, boxes, extents, *how)
    partial = jnp.einsum("brqw,bhwc->brhqc", columns, features)
    return jnp.einsum("brph,brhqc->brpqc", rows, partial)


def _align_by_matmul_rows(features, boxes, extents, *how):
    """Products that a GPU's library takes without a transposition.

    Rows of the map are mixed for all columns and channels at once. Columns are then mixed for every
    row of every crop, with the box's matrix repeated. Compiled for H200, 20 boxes of each of three
    maps of 84 x 84 x 1024 in bf16 move 0.43 GB, and their gradients as much. With columns first
    they move 1.18 and 0.85 GB, since maps are transposed between the products.
    """
    step = _multiple(features.dtype)
    features = _padded(features, {1: step, 2: step})
    num_images, height, width, channels = features.shape
    rows, columns = _interpolation_matrices(features, boxes, extents, *how)
    num_boxes, num_rows, _ = rows.shape[1:]
    num_columns = columns.shape[2]
    rows = _padded(rows.reshape(num_images, num_boxes * num_rows, height), {1: step})
    repeated = jnp.broadcast_to(
        columns[:, :, None], (num_images, num_boxes, num_rows, num_columns, width)
    ).reshape(num_images, num_boxes * num_rows, num_columns, width)
    mixed = rows @ features.reshape(num_images, height, width * channels)
    crops = _padded(repeated, {1: step, 2: step}) @ mixed.reshape(*mixed.shape[:2], width, channels)
    crops = crops[:, : num_boxes * num_rows, :num_columns]
    return crops.reshape(num_images, num_boxes, num_rows, num_columns, channels)


def _multiple(dtype) -> int:
    """Multiple to which XLA pads the sides of products for a GPU's library.

    Without padding ahead XLA copies the array between the two products, the largest of all.
    """
    return 8 if dtype.itemsize == 2 else 1


def _padded(x, multiples: dict[int, int]):
    """``x`` with zeros at the end of axes, up to the next multiple."""
    added = [(0, -side % multiples.get(axis, 1)) for axis, side in enumerate(x.shape)]
    return jnp.pad(x, added) if any(after for _, after in added) else x


def _interpolation_matrices(features, boxes, extents, size, *how):
    """[B, R, P, h] for rows and [B, R, Q, w] for columns, in the features' type."""
    height, width = features.shape[1:3]
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    rows = _interpolation_matrix(y1, y2, extents[:, 0], height, size[0], *how)
    columns = _interpolation_matrix(x1, x2, extents[:, 1], width, size[1], *how)
    return tuple(jax.lax.stop_gradient(w).astype(features.dtype) for w in (rows, columns))


# --- gather ---------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _align_by_gather(features, boxes, extents, size, scale, sampling_ratio, aligned):
    table, geometry = _gather_setup(features, boxes, extents, size, scale, sampling_ratio, aligned)
    channels = features.shape[-1]

    def align_box(box_geometry):
        def add(step, total):
            indices, weights = _corner(box_geometry, step, features.shape, size)
            return total + table[indices] * weights[..., None]

        zeros = jnp.zeros((*size, channels), jnp.float32)
        return jax.lax.fori_loop(0, _num_corners(box_geometry), add, zeros)

    crops = jax.lax.map(align_box, geometry)
    return crops.reshape(*boxes.shape[:2], *size, channels).astype(features.dtype)


def _gather_forward(features, boxes, extents, size, scale, sampling_ratio, aligned):
    out = _align_by_gather(features, boxes, extents, size, scale, sampling_ratio, aligned)
    # The features are needed for their shape and type only; XLA drops the unused buffer.
    return out, (features, boxes, extents)


def _gather_backward(size, scale, sampling_ratio, aligned, residuals, cotangent):
    features, boxes, extents = residuals
    table, geometry = _gather_setup(features, boxes, extents, size, scale, sampling_ratio, aligned)
    channels = features.shape[-1]
    cotangent = cotangent.astype(jnp.float32).reshape(-1, *size, channels)

    def scatter_box(gradient, inputs):
        box_geometry, box_cotangent = inputs

        def add(step, gradient):
            indices, weights = _corner(box_geometry, step, features.shape, size)
            return gradient.at[indices].add(box_cotangent * weights[..., None])

        return jax.lax.fori_loop(0, _num_corners(box_geometry), add, gradient), None

    gradient = jnp.zeros(table.shape, jnp.float32)
    gradient, _ = jax.lax.scan(scatter_box, gradient, (geometry, cotangent))
    return gradient.reshape(features.shape).astype(features.dtype), jnp.zeros_like(boxes), None


_align_by_gather.defvjp(_gather_forward, _gather_backward)


def _gather_setup(features, boxes, extents, size, scale, sampling_ratio, aligned):
    """The maps as one table of cells, and per box (image, its extent, axis geometries)."""
    num_images, height, width, channels = features.shape
    table = features.reshape(num_images * height * width, channels)
    flat = boxes.reshape(-1, 4)
    images = jnp.repeat(jnp.arange(num_images), boxes.shape[1])
    y_axis = _bins(flat[:, 1], flat[:, 3], size[0], scale, sampling_ratio, aligned)
    x_axis = _bins(flat[:, 0], flat[:, 2], size[1], scale, sampling_ratio, aligned)
    return table, (images, extents[images], y_axis, x_axis)


def _num_corners(box_geometry) -> Int[Array, ""]:
    _, _, (_, _, y_count), (_, _, x_count) = box_geometry
    return 4 * y_count * x_count


def _corner(box_geometry, step, shape, size):
    """Table rows and weights, both [P, Q], of one (sample, corner) pair of one box."""
    image, extent, (y_start, y_length, y_count), (x_start, x_length, x_count) = box_geometry
    _, height, width, _ = shape
    sample, corner = step // 4, step % 4
    y_cell, y_weight = _axis_corner(
        y_start, y_length, y_count, sample // x_count, corner // 2, size[0], extent[0]
    )
    x_cell, x_weight = _axis_corner(
        x_start, x_length, x_count, sample % x_count, corner % 2, size[1], extent[1]
    )
    indices = (image * height + y_cell[:, None]) * width + x_cell[None, :]
    total = jnp.maximum(y_count * x_count, 1).astype(jnp.float32)
    return indices, y_weight[:, None] * x_weight[None, :] / total


def _axis_corner(start, length, count, sample, upper, num_bins, extent):
    """Cell and weight of the lower (0) or upper (1) neighbour of one sample in every bin."""
    bins = jnp.arange(num_bins, dtype=jnp.float32)
    at = _sample_positions(start, length, count, sample.astype(jnp.float32), bins)
    inside = (at >= -1.0) & (at <= extent)
    # An image without pixels has an extent of 0, but its cell 0 exists.
    at = jnp.maximum(jnp.minimum(at, extent - 1.0), 0.0)
    low = jnp.floor(at)
    fraction = at - low
    weight = jnp.where(upper == 1, fraction, 1.0 - fraction)
    cell = jnp.maximum(jnp.minimum(low.astype(jnp.int32) + upper, extent - 1), 0)
    return cell, jnp.where(inside, weight, 0.0)


_IMPLEMENTATIONS = {
    "matmul": _align_by_matmul,
    "matmul_rows": _align_by_matmul_rows,
    "gather": _align_by_gather,
}
