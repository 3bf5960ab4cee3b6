"""Residual attention block of CLIP's text and ViT towers.

Source: docs/reference/text.md#text-encoder.
"""

from typing import Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regionclip_jax.models.rematerialization import RematPolicy, with_remat
from regionclip_jax.ops.backend import target_backend
from regionclip_jax.ops.chunks import map_chunks

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]

# Queries per chunk on accelerators, for more than twice as many tokens.
_TOKENS_PER_CHUNK = 256


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x * sigmoid(1.702 x), the activation of CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x times the normal distribution function of x, the exact GELU."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return GELU by its approximation with a tanh."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu, "gelu_tanh": gelu_tanh}


class BlockSizes(Protocol):
    """Sizes of a stack of blocks, which the configs of transformers hold."""

    layers: int
    # Width of the residual stream.
    width: int
    heads: int
    activation: Activation
    # Epsilon of the layer norms.
    eps: float
    # Hidden channels of the MLPs; None: four times the width.
    mlp_width: int | None


def layer_norm(eps: float, dtype: jax.typing.DTypeLike) -> nn.LayerNorm:
    """Return a layer norm, computed in fp32 and cast to ``dtype``."""
    # The fast variance, E[x^2] - E[x]^2, cancels for activations far from zero.
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False)


def dot_product_attention(
    query: Float[Array, "N T heads d"],
    key: Float[Array, "N S heads d"],
    value: Float[Array, "N S heads d"],
    mask: Bool[Array, "#N #T S"] | None,
    tokens_per_chunk: int | None = None,
) -> Float[Array, "N T heads d"]:
    """Attend from queries to keys; scores and softmax are fp32.

    Args:
        query: scaled by 1 / sqrt(d) here.
        mask: True for the keys that a query attends to; None means all.
        tokens_per_chunk: largest number of queries at once; their weights are recomputed in the
            backward pass. None lets the backend and the number of tokens decide. The size of all
            weights is quadratic in the tokens: for the 2,210 of an image of 752 x 752 they are most
            of the memory and traffic of a ViT's step. On CPUs all attend at once: a loop's body
            uses one core there, and memory is seldom short.
    """
    query = query * query.shape[-1] ** -0.5

    def attend(query):
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, value)

    if tokens_per_chunk is None:
        # Only texts have a mask with a row for each token, and texts are short.
        in_chunks = target_backend() != "cpu" and (mask is None or mask.shape[1] == 1)
        in_chunks &= query.shape[1] > 2 * _TOKENS_PER_CHUNK
        tokens_per_chunk = _TOKENS_PER_CHUNK if in_chunks else query.shape[1]
    return map_chunks(attend, query, tokens_per_chunk)


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate q, k, v projections; heads share the width."""

    sizes: BlockSizes
    dtype: jnp.dtype

    def setup(self):
        self.q_proj = self._projection()
        self.k_proj = self._projection()
        self.v_proj = self._projection()
        self.out_proj = self._projection((2 * self.sizes.layers) ** -0.5)

    def _projection(self, gain: float = 1.0) -> nn.Dense:
        init = nn.initializers.variance_scaling(gain**2, "fan_in", "normal")
        return nn.Dense(self.sizes.width, dtype=self.dtype, kernel_init=init)

    def __call__(
        self, x: Float[Array, "N T width"], mask: Bool[Array, "#N #T T"] | None
    ) -> Float[Array, "N T width"]:
        num, tokens, width = x.shape
        heads = (num, tokens, self.sizes.heads, width // self.sizes.heads)
        query, key, value = (
            projection(x).reshape(heads) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = dot_product_attention(query, key, value, mask)
        return self.out_proj(mixed.reshape(num, tokens, width))

    def values_only(self, x: Float[Array, "N T width"]) -> Float[Array, "N T width"]:
        """Project each token's own value: attention of every token to itself only."""
        return self.out_proj(self.v_proj(x))


class MLP(nn.Module):
    """width -> ``mlp_width`` -> width with an activation between."""

    sizes: BlockSizes
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N T width"]) -> Float[Array, "N T width"]:
        width = x.shape[-1]
        hidden = self.sizes.mlp_width or 4 * width
        fc_init = nn.initializers.normal((2 * width) ** -0.5)
        proj_init = nn.initializers.normal(width**-0.5 * (2 * self.sizes.layers) ** -0.5)
        x = nn.Dense(hidden, dtype=self.dtype, kernel_init=fc_init, name="c_fc")(x)
        x = ACTIVATIONS[self.sizes.activation](x)
        return nn.Dense(width, dtype=self.dtype, kernel_init=proj_init, name="c_proj")(x)


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    sizes: BlockSizes
    dtype: jnp.dtype

    def setup(self):
        self.ln_1 = layer_norm(self.sizes.eps, self.dtype)
        self.attention = SelfAttention(self.sizes, self.dtype)
        self.ln_2 = layer_norm(self.sizes.eps, self.dtype)
        self.mlp = MLP(self.sizes, self.dtype)

    def __call__(
        self, x: Float[Array, "N T width"], mask: Bool[Array, "#N #T T"] | None
    ) -> Float[Array, "N T width"]:
        x = x + self.attention(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))

    def values_only(self, x: Float[Array, "N T width"]) -> Float[Array, "N T width"]:
        """Apply the block with its attention replaced by each token's own value."""
        x = x + self.attention.values_only(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class BlockStack(nn.Module):
    """``sizes.layers`` blocks named block0, block1, ...

    Attributes:
        block_class: of the blocks, with the methods of ``Block``. What its ``__call__`` takes
            after the mask follows the mask in the calls below.
    """

    sizes: BlockSizes
    dtype: jnp.dtype
    remat: RematPolicy = "all"
    block_class: type[nn.Module] = Block

    def setup(self):
        block = with_remat(self.block_class, self.remat, ("__call__", "values_only"))
        self.block = [
            block(self.sizes, self.dtype, name=f"block{index}")
            for index in range(self.sizes.layers)
        ]

    def __call__(
        self, x: Float[Array, "N T width"], mask: Bool[Array, "#N #T T"] | None = None, *more
    ) -> Float[Array, "N T width"]:
        for block in self.block:
            x = block(x, mask, *more)
        return x

    def inputs(
        self, x: Float[Array, "N T width"], mask: Bool[Array, "#N #T T"] | None = None, *more
    ) -> list[Float[Array, "N T width"]]:
        """Return the input of every block; all but the first are outputs of the block before."""
        inputs = [x]
        for block in self.block[:-1]:
            inputs.append(block(inputs[-1], mask, *more))
        return inputs

    def last(
        self, x: Float[Array, "N T width"], mask: Bool[Array, "#N #T T"] | None = None, *more
    ) -> Float[Array, "N T width"]:
        return self.block[-1](x, mask, *more)

    def last_values_only(self, x: Float[Array, "N T width"]) -> Float[Array, "N T width"]:
        return self.block[-1].values_only(x)
