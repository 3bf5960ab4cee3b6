"""Optimizers as optax chains: the reference's SGD, AdamW, and decay by parameter path.

Source: docs/reference/pretraining.md#solver. The order of the SGD chain is the reference's:
per-tensor clipping of the raw gradient, weight decay added to it, momentum, learning rate::

    g     <- g * min(1, c / (||g|| + 1e-6))
    g     <- g + wd * theta
    buf   <- m * buf + g                        (first step: buf = g)
    theta <- theta - lr * buf

Parameter paths are written with slashes, ``visual/layer1/block0/conv1/kernel``; a pattern is a
regular expression searched in the path. Frozen parameters are no part of the tree that an optimizer
sees (``steps.train_state``).
"""

import re
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax


def make_optimizer(
    kind: Literal["sgd", "adamw"],
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    momentum: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    clip_per_tensor_norm: float | None = None,
    no_decay_patterns: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Build the optimizer of a run.

    Args:
        kind: ``"sgd"`` (coupled decay, heavy-ball momentum) or ``"adamw"`` (decoupled decay).
        schedule: updates done -> learning rate.
        weight_decay: factor on theta; 0 for none.
        momentum: momentum of SGD, beta1 of AdamW.
        beta2, epsilon: of AdamW.
        clip_per_tensor_norm: largest L2 norm of each gradient tensor; None for no clipping.
        no_decay_patterns: parameters whose path matches one of these are not decayed.

    Raises:
        ValueError: an unknown kind; and, at ``init``, a pattern that matches no parameter.
    """
    parts = []
    if clip_per_tensor_norm is not None:
        parts.append(clip_by_tensor_norm(clip_per_tensor_norm))

    def decays(params):
        return _map_with_path(lambda path, _: not _matches(path, no_decay_patterns), params)

    decay = optax.add_decayed_weights(weight_decay, mask=decays)
    if kind == "sgd":
        parts += [decay, optax.trace(decay=momentum)]
    elif kind == "adamw":
        parts += [optax.scale_by_adam(momentum, beta2, epsilon), decay]
    else:
        raise ValueError(f"optimizer: kind must be one of 'sgd', 'adamw', found {kind!r}")
    optimizer = optax.chain(*parts, optax.scale_by_learning_rate(schedule))

    def init(params):
        _require_matches(params, no_decay_patterns)
        return optimizer.init(params)

    return optax.GradientTransformation(init, optimizer.update)


def clip_by_tensor_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale each gradient tensor separately to an L2 norm of at most ``max_norm``.

    The coefficient is ``min(1, max_norm / (norm + 1e-6))`` (docs/reference/pretraining.md#solver);
    the norm is computed in float32. optax clips by the norm of all tensors together, by which a
    large tensor scales the others, or by the root mean square of each.

    Raises:
        ValueError: ``max_norm`` is not positive.
    """
    if not max_norm > 0:
        raise ValueError(
            f"optimizer: clip_per_tensor_norm must be > 0, found {max_norm}; None means no clipping"
        )

    def clip(gradient):
        norm = jnp.linalg.norm(gradient.astype(jnp.float32).ravel())
        coefficient = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return gradient * coefficient.astype(gradient.dtype)

    def update(gradients, state, params=None):
        del params
        return jax.tree.map(clip, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _map_with_path(function, tree):
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: function(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf),
        tree,
    )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _require_matches(params, patterns: Sequence[str]) -> None:
    paths = jax.tree.leaves(_map_with_path(lambda path, _: path, params))
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"optimizer: pattern {pattern!r} matches none of the {len(paths)} parameters "
                f"(for example {', '.join(paths[:3])}); correct or remove it"
            )
