"""A large batch in parts, with the gradient of the whole (gradient caching, arXiv:2101.06983).

A contrastive loss is not a mean over images: every image is a negative of all others, so gradients
of parts do not add up to that of the whole. But the loss depends on images through their embeddings
alone. First the embeddings are computed part by part without gradients. Then come the loss of all
embeddings and its gradient with respect to them. This gradient is then propagated to the parameters
part by part. Memory is that of one part and of all embeddings; the cost is one more forward pass.

A part has every ``count``-th row of the batch. So a batch sharded in blocks is split within each
device, without communication.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = TypeVar("Tree")


def split(batch: Tree, count: int) -> Tree:
    """Split ``[B, ...]`` into ``[count, B / count, ...]``.

    Raises:
        ValueError: ``count`` does not divide the batch.
    """

    def parts(x):
        if x.shape[0] % count:
            raise ValueError(
                f"a batch of {x.shape[0]} does not divide into {count} micro-batches; choose a "
                "divisor"
            )
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(parts, batch)


def join(parts: Tree) -> Tree:
    """Invert ``split``."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def map_parts(function: Callable, batch: Tree, count: int):
    """Apply ``function`` to a part at a time; each result row depends on its own row alone."""
    if count == 1:
        return function(batch)
    return join(jax.lax.map(function, split(batch, count)))


def value_and_cached_gradient(
    embed: Callable,
    loss: Callable,
    params: Tree,
    batch,
    count: int,
) -> tuple[tuple[Float[Array, ""], object], Tree]:
    """Return loss and gradient of ``loss(embed(params, batch))``, one part of the batch at a time.

    Args:
        embed: ``(params, part) -> tree of [b, ...]``; each row depends on its own row alone.
        loss: tree of ``[B, ...]`` -> ``(loss, auxiliary)``, for the whole batch.
        params: trained parameters.
        batch: tree of ``[B, ...]``.
        count: number of parts.

    Returns:
        ``((loss, auxiliary), gradient)`` as ``jax.value_and_grad`` with ``has_aux``.
    """
    parts = split(batch, count)
    embeddings = join(jax.lax.map(lambda part: embed(params, part), parts))
    value, cotangents = jax.value_and_grad(loss, has_aux=True)(embeddings)

    def add(total, inputs):
        part, cotangent = inputs
        _, pull = jax.vjp(lambda params: embed(params, part), params)
        (gradient,) = pull(cotangent)
        return jax.tree.map(jnp.add, total, gradient), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradient, _ = jax.lax.scan(add, zeros, (parts, split(cotangents, count)))
    return value, gradient
