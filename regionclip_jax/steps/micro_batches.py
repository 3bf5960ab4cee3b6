"""A large batch in parts, with the gradient of the whole (gradient caching, arXiv:2101.06983).

A contrastive loss is no mean over pictures: every picture is everyone's negative, so gradients of
parts do not add up to that of the whole. But the loss sees pictures through their embeddings alone.
So these are computed part by part without gradients, then the loss of all of them and its gradient
with respect to them, then part by part again what that means for the parameters. Memory is that of
one part and of all embeddings; the price is one more forward pass.

Rows of a part are every ``count``-th of the batch, so that a batch which lies in blocks on devices
is split on each of them and nothing travels.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tree = TypeVar("Tree")


def split(batch: Tree, count: int) -> Tree:
    """``[B, ...]`` to ``[count, B / count, ...]``.

    Raises:
        ValueError: the batch does not divide.
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
    """The inverse of ``split``."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def map_parts(function: Callable, batch: Tree, count: int):
    """``function(batch)``, a part at a time; what it gives for a row depends on that row alone."""
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
    """Loss and gradient of ``loss(embed(params, batch))``, with one part of the batch at a time.

    Args:
        embed: ``(params, part) -> tree of [b, ...]``; of a row from that row alone.
        loss: tree of ``[B, ...]`` -> ``(loss, auxiliary)``, of the whole batch.
        params: that are trained.
        batch: tree of ``[B, ...]``.
        count: of parts.

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
