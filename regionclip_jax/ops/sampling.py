"""Random choices with fixed sizes and explicit keys: subsets of regions, random boxes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from regionclip_jax.structures import Regions


def sample_regions(key: PRNGKeyArray, regions: Regions, num_samples: int) -> Regions:
    """A uniform subset of each picture's regions, in random order, ignoring their scores.

    Spec: models_pretrain 3.3. With fewer real regions than ``num_samples`` all of them are kept and
    the rest of the rows is masked.
    """
    order = jax.random.uniform(key, regions.mask.shape)
    order = jnp.where(regions.mask, order, 2.0)
    chosen = jnp.argsort(order, axis=1)[:, :num_samples]
    return jax.tree.map(
        lambda x: jnp.take_along_axis(x, chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2)), 1),
        regions,
    )


def random_boxes(
    key: PRNGKeyArray, sizes: Int[Array, "B 2"], num_boxes: int, grid: int
) -> Float[Array, "B R 4"]:
    """Boxes with corners on a grid of ``grid`` pixels, anywhere in each picture.

    Spec: models_pretrain 3.4: the upper left corner is uniform over grid points, the lower right
    one uniform over those right of and below it. The reference draws one set on the padded batch
    canvas and shares it among the images, so boxes may lie on padding; here every picture has its
    own draw within its own pixels. Pictures smaller than one grid cell get their whole box.
    """
    cells = jnp.maximum(sizes // grid, 1)[:, None, ::-1]
    low_key, high_key = jax.random.split(key)
    shape = (sizes.shape[0], num_boxes, 2)
    low = jnp.floor(jax.random.uniform(low_key, shape) * cells)
    low = jnp.minimum(low, cells - 1)
    span = jnp.floor(jax.random.uniform(high_key, shape) * (cells - low)) + 1
    high = jnp.minimum(low + span, cells)
    limit = sizes[:, None, ::-1].astype(jnp.float32)
    return jnp.concatenate([low * grid, jnp.minimum(high * grid, limit)], -1)


def box_mask(sizes: Int[Array, "B 2"], num_boxes: int) -> Bool[Array, "B R"]:
    """All boxes of pictures that have pixels; none of those that are padding of the batch."""
    return jnp.broadcast_to((sizes > 0).all(-1, keepdims=True), (sizes.shape[0], num_boxes))
