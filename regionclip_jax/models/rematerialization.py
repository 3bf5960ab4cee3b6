"""What the blocks of a tower keep from the forward pass for the backward one.

A choice between memory and time: no number and no parameter's name depends on it. It says nothing
where no gradient is taken: a frozen stage keeps nothing either way, and none of it is made twice.
"""

from typing import TypeVar

import flax.linen as nn
import jax

from regionclip_jax.settings import KeptActivations

# The name (``checkpoint_name``) of what convolutions put out: their own gradients hide the rest.
PRODUCT = "product"

Block = TypeVar("Block", bound=type[nn.Module])


def keeping(block: Block, kept: KeptActivations, methods: tuple[str, ...] = ("__call__",)) -> Block:
    """Return a module's class whose ``methods`` keep no more than ``kept``.

    Args:
        kept: "all": whatever the gradient of the block asks for. "products": the block's input and
            the outputs of its convolutions and dense layers; norms, activations, pools and
            attention are made again. "block_inputs": the block's input alone; the block is made
            again.
    """
    if kept == "all":
        return block
    policies = {"products": _is_product, "block_inputs": None}
    return nn.remat(block, policy=policies[kept], methods=list(methods))


def _is_product(primitive, *shapes, **parameters) -> bool:
    """Convolutions, and products with a matrix; not those of queries with keys of each picture."""
    policies = jax.checkpoint_policies
    return any(
        saves(primitive, *shapes, **parameters)
        for saves in (
            policies.save_only_these_names(PRODUCT),
            policies.dots_with_no_batch_dims_saveable,
        )
    )
