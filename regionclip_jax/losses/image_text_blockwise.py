"""The image-text loss without its B x B matrix: in blocks on one device, or in a ring of devices.

Both equal ``image_text.image_text_loss`` exactly, in value and in the gradients of embeddings,
temperature and bias. A block of logits is computed, added to the sums of its rows (image to text)
and of its columns (text to image), and dropped; the backward pass computes it again. In the ring
every device keeps its images. The texts and their partial sums pass through all devices once, back
to their own. One pass computes both directions.

The sums are log-sum-exps for the softmax. For the sigmoid they are sums of softplus: the binary
cross-entropy of a logit is its softplus, less the logit itself for a matching pair. So both losses
are the sums of rows and columns, less twice the matching logits.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from regionclip_jax.ops.normalization import unit_length
from regionclip_jax.structures import Number

# The mesh and its axis (or axes) over which rows are sharded.
Ring = tuple[Mesh, str | tuple[str, ...]]


class _Sums(NamedTuple):
    """Sums over logits: their start, the sum of two, and the sum of a block along an axis.

    ``slope`` is the derivative of a sum by each of its logits, from both.
    """

    start: float
    add: Callable
    of_block: Callable
    slope: Callable


_SOFTMAX = _Sums(
    -jnp.inf, jnp.logaddexp, jax.nn.logsumexp, lambda logits, sums: jnp.exp(logits - sums)
)
_SIGMOID = _Sums(
    0.0,
    jnp.add,
    lambda logits, axis: jax.nn.softplus(logits).sum(axis),
    lambda logits, sums: jax.nn.sigmoid(logits),
)


def chunked_image_text_loss(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    mask: Bool[Array, " B"],
    temperature: Number,
    bias: Number | None = None,
    *,
    chunk: int,
) -> Float[Array, ""]:
    """Compute ``image_text_loss`` in blocks of ``chunk`` texts.

    Memory beyond the embeddings and their gradients: ``B * chunk`` logits, forward and backward,
    in place of ``B * B``. The work is that of the plain loss plus one product, since the backward
    pass recomputes the logits.

    Args:
        images, texts, mask, temperature, bias: as in ``image_text_loss``.
        chunk: texts of a block; it need not divide B.
    """
    return _loss(images, texts, mask, temperature, bias, chunk, None)


def ring_image_text_loss(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    mask: Bool[Array, " B"],
    temperature: Number,
    bias: Number | None = None,
    *,
    chunk: int,
    mesh: Mesh,
    axis: str | tuple[str, ...],
) -> Float[Array, ""]:
    """Compute ``image_text_loss`` of rows sharded over n devices, without a gather.

    Memory of a device beyond its own ``B / n`` rows: one foreign shard of texts and its gradient,
    ``2 * (B / n) * D``, and ``(B / n) * chunk`` logits, for every n. Traffic of a device: n hops of
    ``(B / n) * D`` numbers forward, and of twice as many backward.

    Args:
        images, texts, mask, temperature, bias: as in ``image_text_loss``, the global batch; n
            divides B.
        chunk: texts of a block, out of the ``B / n`` of a shard.
        mesh, axis: the devices, and the axis (or axes) of the mesh that shard the batch.
    """
    return _loss(images, texts, mask, temperature, bias, chunk, (mesh, axis))


def _loss(
    images, texts, mask, temperature, bias, chunk: int, ring: Ring | None
) -> Float[Array, ""]:
    kind = _SOFTMAX if bias is None else _SIGMOID
    images, texts = unit_length(images), unit_length(texts)
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    # A softmax does not depend on a bias.
    bias = jnp.asarray(0.0 if bias is None else bias, jnp.float32)
    to_text, to_image = _sums(images, texts, mask, (scale, bias), kind, (chunk, ring))
    matching = scale * (images * texts).sum(-1) + bias
    count = jnp.maximum(mask.sum(), 1)
    return jnp.where(mask, to_text + to_image - 2 * matching, 0.0).sum() / (2 * count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sums(images, texts, mask, line, kind: _Sums, how: tuple[int, Ring | None]):
    """Return the sums of every image over all texts, and of every text over all images.

    Args:
        line: factor and summand of the cosines.
        how: texts of a block, and the ring.
    """
    chunk, ring = how
    if ring is None:
        return _sum_blocks(images, mask, texts, mask, line, kind, chunk)
    mesh, axis = ring
    rows, whole = PartitionSpec(axis), PartitionSpec()

    def tour(images, texts, mask, line):
        def stop(carry, _):
            sums, (texts, texts_mask, texts_sums) = carry
            here = _sum_blocks(images, mask, texts, texts_mask, line, kind, chunk)
            sums, texts_sums = map(kind.add, (sums, texts_sums), here)
            return (sums, _pass_on((texts, texts_mask, texts_sums), ring)), None

        nothing = jnp.full_like(images[:, 0], kind.start)
        start = nothing, (texts, mask, nothing)
        (sums, (_, _, texts_sums)), _ = jax.lax.scan(stop, start, length=_size(ring))
        return sums, texts_sums

    everywhere = jax.shard_map(
        tour, mesh=mesh, in_specs=(rows, rows, rows, whole), out_specs=(rows, rows)
    )
    return everywhere(images, texts, mask, line)


def _sums_forward(images, texts, mask, line, kind, how):
    sums = _sums(images, texts, mask, line, kind, how)
    return sums, (images, texts, mask, line, *sums)


def _sums_backward(kind, how, saved, gradients):
    images, texts, mask, line, sums, texts_sums = saved
    gradient, texts_gradient = gradients
    kept, visiting = (images, mask, sums, gradient), (texts, mask, texts_sums, texts_gradient)
    chunk, ring = how
    if ring is None:
        d_images, d_texts, d_bias = _pull_blocks(kept, visiting, line, kind, chunk)
    else:
        mesh, axis = ring
        rows, whole = PartitionSpec(axis), PartitionSpec()

        def tour(kept, visiting, line):
            def stop(carry, _):
                d_images, d_bias, (visiting, d_texts) = carry
                here = _pull_blocks(kept, visiting, line, kind, chunk)
                d_images, d_texts = d_images + here[0], d_texts + here[1]
                return (d_images, d_bias + here[2], _pass_on((visiting, d_texts), ring)), None

            start = (
                jnp.zeros_like(kept[0]),
                jnp.zeros_like(kept[0][:, 0]),
                (visiting, jnp.zeros_like(visiting[0])),
            )
            (d_images, d_bias, (_, d_texts)), _ = jax.lax.scan(stop, start, length=_size(ring))
            return d_images, d_texts, d_bias

        everywhere = jax.shard_map(
            tour, mesh=mesh, in_specs=(rows, rows, whole), out_specs=(rows, rows, rows)
        )
        d_images, d_texts, d_bias = everywhere(kept, visiting, line)
    # Both gradients still lack the factor, so its own gradient needs no third product.
    d_line = (images * d_images).sum(), d_bias.sum()
    return line[0] * d_images, line[0] * d_texts, None, d_line


_sums.defvjp(_sums_forward, _sums_backward)


def _sum_blocks(images, images_mask, texts, texts_mask, line, kind: _Sums, chunk: int):
    """Sums of the images over these texts, and of these texts over the images."""

    def visit(sums, block):
        texts, texts_mask = block
        logits, _ = _logits(images, images_mask, texts, texts_mask, line)
        sums = kind.add(sums, kind.of_block(logits, axis=1))
        return sums, kind.of_block(logits, axis=0)

    start = jnp.full_like(images[:, 0], kind.start)
    sums, texts_sums = jax.lax.scan(visit, start, _split((texts, texts_mask), chunk))
    return sums, texts_sums.reshape(-1)[: texts.shape[0]]


def _pull_blocks(kept, visiting, line, kind: _Sums, chunk: int):
    """Gradients of scaled images and texts, and each image's share of that of the bias."""
    images, images_mask, sums, gradient = kept

    def visit(carry, block):
        d_images, d_bias = carry
        texts, texts_mask, texts_sums, texts_gradient = block
        logits, real = _logits(images, images_mask, texts, texts_mask, line)
        weights = gradient[:, None] * kind.slope(logits, sums[:, None])
        weights += texts_gradient * kind.slope(logits, texts_sums)
        weights = jnp.where(real, weights, 0.0)
        carry = d_images + weights @ texts, d_bias + weights.sum(1)
        return carry, weights.T @ images

    start = jnp.zeros_like(images), jnp.zeros_like(images[:, 0])
    (d_images, d_bias), d_texts = jax.lax.scan(visit, start, _split(visiting, chunk))
    return d_images, d_texts.reshape(-1, images.shape[1])[: visiting[0].shape[0]], d_bias


def _logits(images, images_mask, texts, texts_mask, line):
    real = images_mask[:, None] & texts_mask
    scale, bias = line
    # Finite, so that a block without a real pair has finite sums.
    return jnp.where(real, scale * (images @ texts.T) + bias, -1e9), real


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
