"""The image-text loss without its B x B matrix: in blocks on one device, or in a ring of devices.

Both equal ``image_text.image_text_loss`` exactly, in value and in the gradients of embeddings and
temperature. A block of logits is computed, added to the log-sum-exp of its rows (image to text) and
of its columns (text to image), and dropped; the backward pass computes it again. In the ring every
device keeps its images. The texts and their partial sums pass through all devices once, back to
their own. One pass computes both directions.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from regionclip_jax.ops.normalization import unit_length

# The mesh and its axis (or axes) over which rows are sharded.
Ring = tuple[Mesh, str | tuple[str, ...]]


def chunked_image_text_loss(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    mask: Bool[Array, " B"],
    temperature: float | Float[Array, ""],
    chunk: int,
) -> Float[Array, ""]:
    """Compute ``image_text_loss`` in blocks of ``chunk`` texts.

    Memory beyond the embeddings and their gradients: ``B * chunk`` logits, forward and backward,
    in place of ``B * B``. The work is that of the plain loss plus one product, since the backward
    pass recomputes the logits.

    Args:
        images, texts, mask, temperature: as in ``image_text_loss``.
        chunk: texts of a block; it need not divide B.
    """
    return _loss(images, texts, mask, temperature, chunk, None)


def ring_image_text_loss(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    mask: Bool[Array, " B"],
    temperature: float | Float[Array, ""],
    chunk: int,
    mesh: Mesh,
    axis: str | tuple[str, ...],
) -> Float[Array, ""]:
    """Compute ``image_text_loss`` of rows sharded over n devices, without a gather.

    Memory of a device beyond its own ``B / n`` rows: one foreign shard of texts and its gradient,
    ``2 * (B / n) * D``, and ``(B / n) * chunk`` logits, for every n. Traffic of a device: n hops of
    ``(B / n) * D`` numbers forward, and of twice as many backward.

    Args:
        images, texts, mask, temperature: as in ``image_text_loss``, the global batch; n divides B.
        chunk: texts of a block, out of the ``B / n`` of a shard.
        mesh, axis: the devices, and the axis (or axes) of the mesh that shard the batch.
    """
    return _loss(images, texts, mask, temperature, chunk, (mesh, axis))


def _loss(images, texts, mask, temperature, chunk: int, ring: Ring | None) -> Float[Array, ""]:
    images, texts = unit_length(images), unit_length(texts)
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    to_text, to_image = _log_sums(images, texts, mask, scale, chunk, ring)
    matching = scale * (images * texts).sum(-1)
    count = jnp.maximum(mask.sum(), 1)
    return jnp.where(mask, to_text + to_image - 2 * matching, 0.0).sum() / (2 * count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _log_sums(images, texts, mask, scale, chunk: int, ring: Ring | None):
    """Log-sum-exp of every image over all texts, and of every text over all images."""
    if ring is None:
        return _sum_blocks(images, mask, texts, mask, scale, chunk)
    mesh, axis = ring
    rows, whole = PartitionSpec(axis), PartitionSpec()

    def tour(images, texts, mask, scale):
        def stop(carry, _):
            sums, (texts, texts_mask, texts_sums) = carry
            here = _sum_blocks(images, mask, texts, texts_mask, scale, chunk)
            sums, texts_sums = map(jnp.logaddexp, (sums, texts_sums), here)
            return (sums, _pass_on((texts, texts_mask, texts_sums), ring)), None

        nothing = jnp.full_like(images[:, 0], -jnp.inf)
        start = nothing, (texts, mask, nothing)
        (sums, (_, _, texts_sums)), _ = jax.lax.scan(stop, start, length=_size(ring))
        return sums, texts_sums

    everywhere = jax.shard_map(
        tour, mesh=mesh, in_specs=(rows, rows, rows, whole), out_specs=(rows, rows)
    )
    return everywhere(images, texts, mask, scale)


def _log_sums_forward(images, texts, mask, scale, chunk, ring):
    sums = _log_sums(images, texts, mask, scale, chunk, ring)
    return sums, (images, texts, mask, scale, *sums)


def _log_sums_backward(chunk, ring, saved, gradients):
    images, texts, mask, scale, sums, texts_sums = saved
    gradient, texts_gradient = gradients
    if ring is None:
        d_images, d_texts = _pull_blocks(
            (images, mask, sums, gradient), (texts, mask, texts_sums, texts_gradient), scale, chunk
        )
    else:
        mesh, axis = ring
        rows, whole = PartitionSpec(axis), PartitionSpec()

        def tour(kept, visiting, scale):
            def stop(carry, _):
                d_images, (visiting, d_texts) = carry
                here = _pull_blocks(kept, visiting, scale, chunk)
                d_images, d_texts = d_images + here[0], d_texts + here[1]
                return (d_images, _pass_on((visiting, d_texts), ring)), None

            start = jnp.zeros_like(kept[0]), (visiting, jnp.zeros_like(visiting[0]))
            (d_images, (_, d_texts)), _ = jax.lax.scan(stop, start, length=_size(ring))
            return d_images, d_texts

        everywhere = jax.shard_map(
            tour, mesh=mesh, in_specs=(rows, rows, whole), out_specs=(rows, rows)
        )
        d_images, d_texts = everywhere(
            (images, mask, sums, gradient), (texts, mask, texts_sums, texts_gradient), scale
        )
    # Both gradients still lack the factor ``scale``, so its own gradient needs no third product.
    return scale * d_images, scale * d_texts, None, (images * d_images).sum()


_log_sums.defvjp(_log_sums_forward, _log_sums_backward)


def _sum_blocks(images, images_mask, texts, texts_mask, scale, chunk: int):
    """Log-sum-exp of the images over these texts, and of these texts over the images."""

    def visit(sums, block):
        texts, texts_mask = block
        logits, _ = _logits(images, images_mask, texts, texts_mask, scale)
        sums = jnp.logaddexp(sums, jax.nn.logsumexp(logits, axis=1))
        return sums, jax.nn.logsumexp(logits, axis=0)

    start = jnp.full_like(images[:, 0], -jnp.inf)
    sums, texts_sums = jax.lax.scan(visit, start, _split((texts, texts_mask), chunk))
    return sums, texts_sums.reshape(-1)[: texts.shape[0]]


def _pull_blocks(kept, visiting, scale, chunk: int):
    """Gradients of the scaled images and texts: softmaxes, weighted by the sums' gradients."""
    images, images_mask, sums, gradient = kept

    def visit(d_images, block):
        texts, texts_mask, texts_sums, texts_gradient = block
        logits, real = _logits(images, images_mask, texts, texts_mask, scale)
        weights = gradient[:, None] * jnp.exp(logits - sums[:, None])
        weights += texts_gradient * jnp.exp(logits - texts_sums)
        weights = jnp.where(real, weights, 0.0)
        return d_images + weights @ texts, weights.T @ images

    d_images, d_texts = jax.lax.scan(visit, jnp.zeros_like(images), _split(visiting, chunk))
    return d_images, d_texts.reshape(-1, images.shape[1])[: visiting[0].shape[0]]


def _logits(images, images_mask, texts, texts_mask, scale):
    real = images_mask[:, None] & texts_mask
    # Finite, so that a block without a real pair has finite sums.
    return jnp.where(real, scale * (images @ texts.T), -1e9), real


def _split(rows, chunk: int):
    """Blocks ``[ceil(N / chunk), chunk, ...]`` of ``[N, ...]``; padding rows are masked."""
    size = min(chunk, rows[0].shape[0])

    def split(x):
        added = -x.shape[0] % size
        return jnp.pad(x, [(0, added)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, rows)


def _size(ring: Ring) -> int:
    mesh, axis = ring
    axes = (axis,) if isinstance(axis, str) else axis
    return functools.reduce(lambda size, name: size * mesh.shape[name], axes, 1)


def _pass_on(rows, ring: Ring):
    size = _size(ring)
    return jax.lax.ppermute(rows, ring[1], [(i, (i + 1) % size) for i in range(size)])
