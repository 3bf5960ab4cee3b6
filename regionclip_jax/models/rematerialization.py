"""Remat policy of a tower's blocks: the activations kept for the backward pass.

The policy trades memory for time; no number and no parameter's name depends on it. It has no effect
without a gradient: a frozen stage keeps nothing and is never computed twice.
"""

from typing import TypeVar

import flax.linen as nn
import jax

from regionclip_jax.settings import RematPolicy

# The ``checkpoint_name`` of convolution outputs: custom gradients hide them from JAX's policies.
PRODUCT = "product"

Block = TypeVar("Block", bound=type[nn.Module])


def with_remat(
    block: Block, policy: RematPolicy, methods: tuple[str, ...] = ("__call__",)
) -> Block:
    """Return a module's class with a remat policy on its ``methods``.

    Args:
        policy: "all": all values that the block's gradient needs. "products": the block's input and
            the outputs of its convolutions and dense layers; norms, activations, pools and
            attention are recomputed. "block_inputs": the block's input alone; the block is
            recomputed.
    """
    if policy == "all":
        return block
    policies = {"products": _is_product, "block_inputs": None}
    return nn.remat(block, policy=policies[policy], methods=list(methods))


def _is_product(primitive, *shapes, **parameters) -> bool:
    """True for convolutions and matrix products, but not for the products of attention."""
    policies = jax.checkpoint_policies
    return any(
        saves(primitive, *shapes, **parameters)
        for saves in (
            policies.save_only_these_names(PRODUCT),
            policies.dots_with_no_batch_dims_saveable,
        )
    )
