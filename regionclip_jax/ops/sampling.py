"""Boxes and subsets of boxes with fixed sizes: random ones by explicit keys, and windows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from regionclip_jax.structures import Regions


def sample_regions(key: PRNGKeyArray, regions: Regions, num_samples: int) -> Regions:
    """Sample a uniform subset of each image's regions, in random order, ignoring their scores.

    Source: docs/reference/pretraining.md#region-sampling. With fewer real regions than
    ``num_samples`` all of them are kept and the other rows are masked.
    """
    order = jax.random.uniform(key, regions.mask.shape)
    order = jnp.where(regions.mask, order, 2.0)
    chosen = jnp.argsort(order, axis=1)[:, :num_samples]
    return jax.tree.map(
        lambda x: jnp.take_along_axis(x, chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2)), 1),
        regions,
    )


def random_boxes(
    key: PRNGKeyArray,
    sizes: Int[Array, "B 2"],
    num_boxes: int,
    grid: int,
    sides: tuple[float, float] | None = None,
) -> Float[Array, "B R 4"]:
    """Draw boxes with corners on a grid of ``grid`` pixels, anywhere in each image.

    Source: docs/reference/pretraining.md#random-regions. The upper left corner is uniform over grid
    points, the lower right one uniform over those right of and below it. The reference draws one
    set on the padded batch canvas and shares it among the images, so boxes may lie on padding. Here
    every image has its own draw within its own pixels. Images smaller than one grid cell get one
    box of the whole image.

    Args:
        key: of all draws.
        sizes: (height, width) of each image's real pixels.
        num_boxes: R, per image.
        grid: pixels.
        sides: None for the reference's draw, which often gives slivers and nearly whole images.
            Else the shortest and longest side as shares of the image's. Width and height are
            uniform between them (to a grid cell), then the position is uniform.
    """
    cells = jnp.maximum(sizes // grid, 1)[:, None, ::-1]
    low_key, span_key = jax.random.split(key)
    shape = (sizes.shape[0], num_boxes, 2)

    def whole_number_up_to(key, limit):
        return jnp.minimum(jnp.floor(jax.random.uniform(key, shape) * (limit + 1)), limit)

    if sides is None:
        low = whole_number_up_to(low_key, cells - 1)
        span = 1 + whole_number_up_to(span_key, cells - low - 1)
    else:
        shortest, longest = (jnp.maximum(jnp.round(share * cells), 1) for share in sides)
        span = shortest + whole_number_up_to(span_key, longest - shortest)
        low = whole_number_up_to(low_key, cells - span)
    limit = sizes[:, None, ::-1].astype(jnp.float32)
    return jnp.concatenate([low * grid, jnp.minimum((low + span) * grid, limit)], -1)


def grid_boxes(sizes: Int[Array, "B 2"], sides: tuple[float, ...]) -> Float[Array, "B R 4"]:
    """Return sliding windows of each image, for use without a localizer.

    Args:
        sizes: (height, width) of each image's real pixels.
        sides: of the windows, as shares of the image's; the stride is at most a third of the side.

    Returns:
        R boxes, the same shares of every image: all windows of the first side, then the next.
    """
    shares = []
    for side in sides:
        steps = math.ceil((1 - side) / (side / 3)) + 1
        y, x = np.meshgrid(*[np.linspace(0, 1 - side, steps)] * 2, indexing="ij")
        shares.append(np.stack([x, y, x + side, y + side], -1).reshape(-1, 4))
    image_sides = jnp.tile(sizes[:, None, ::-1].astype(jnp.float32), 2)
    return jnp.asarray(np.concatenate(shares), jnp.float32) * image_sides


def grid_shapes(max_split: int) -> list[tuple[int, int]]:
    """Return all (rows, columns) up to ``max_split``, neither more than twice the other."""
    numbers = range(1, max_split + 1)
    return [(m, n) for m in numbers for n in numbers if m <= 2 * n and n <= 2 * m]


def random_grid_cells(
    keys: Key[Array, " B"], sizes: Int[Array, "B 2"], max_split: int, num_boxes: int
) -> Regions:
    """Draw one grid for each image, and at most ``num_boxes`` of its cells, in random order.

    Source: docs/reference/distillation.md#boxes. All of ``grid_shapes`` are equally likely.

    Args:
        keys: one for each image.
        sizes: (height, width) of each image's real pixels.
        max_split: largest number of rows and of columns.
        num_boxes: R.

    Returns:
        Cells with scores of 0; masked if the grid has fewer, or the image no pixels.
    """
    shapes = grid_shapes(max_split)
    most = max(max_split**2, num_boxes)
    lines = np.zeros((len(shapes), most, 4), np.float32)
    for row, (m, n) in enumerate(shapes):
        y, x = np.meshgrid(np.arange(m), np.arange(n), indexing="ij")
        lines[row, : m * n] = np.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4)
    counts = np.array([(n, m, n, m) for m, n in shapes], np.float32)
    real = np.arange(most) < counts[:, :2].prod(1, keepdims=True)

    def draw(key, size):
        shape_key, order_key = jax.random.split(key)
        shape = jax.random.randint(shape_key, (), 0, len(shapes))
        # Products are exact, so that a line between two pixels gets no fraction.
        boxes = jnp.asarray(lines)[shape] * jnp.tile(size[::-1].astype(jnp.float32), 2)
        boxes = boxes / jnp.asarray(counts)[shape]
        mask = jnp.asarray(real)[shape] & (size > 0).all()
        cells = Regions(boxes=boxes, scores=jnp.zeros(most), mask=mask)
        one = jax.tree.map(lambda x: x[None], cells)
        return jax.tree.map(lambda x: x[0], sample_regions(order_key, one, num_boxes))

    return jax.vmap(draw)(keys, sizes)


def box_mask(sizes: Int[Array, "B 2"], num_boxes: int) -> Bool[Array, "B R"]:
    """Return True for all boxes of real images, False for those of the batch's padding rows."""
    return jnp.broadcast_to((sizes > 0).all(-1, keepdims=True), (sizes.shape[0], num_boxes))
