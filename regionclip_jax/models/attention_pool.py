"""CLIP's attention pooling, computed for the one query that it uses.

Source: docs/reference/towers.md#attention-pool. The reference computes queries, keys and values of
every token and keeps token 0 of the result. Here re-association gives the same result: the query is
the mean token only; ``score_j = (W_k,h^T q_h) . x_j`` (its constant ``q . b_k`` cancels in the
softmax) and ``output_h = W_v,h (sum_j a_j x_j) + b_v,h``. Keys and values of the tokens are never
computed, so ``k_proj/bias`` has no effect. It is kept so that checkpoints survive a round trip.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class _Projection(nn.Module):
    """Kernel and bias of a linear map, for maps that are applied in pieces."""

    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel, bias


class AttentionPool(nn.Module):
    """Pooling of a grid of features into one embedding.

    Args of the module: ``grid_size`` side of the positional embedding's grid, ``num_heads``,
    ``embed_dim`` D, ``dtype`` of the computation.
    """

    grid_size: int
    num_heads: int
    embed_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N h w E"]) -> Float[Array, "N D"]:
        num, height, width, channels = x.shape
        if (height, width) != (self.grid_size, self.grid_size):
            raise ValueError(
                f"attention pool: expected {self.grid_size}x{self.grid_size} features, found "
                f"{height}x{width}; set the RoIAlign output size to {2 * self.grid_size}"
            )
        init = nn.initializers.normal(channels**-0.5)
        positions = self.param(
            "positional_embedding", init, (self.grid_size**2 + 1, channels)
        ).astype(self.dtype)
        w_q, b_q = _Projection(channels, init, name="q_proj")(channels)
        w_k, _ = _Projection(channels, init, name="k_proj")(channels)
        w_v, b_v = _Projection(channels, init, name="v_proj")(channels)
        w_c, b_c = _Projection(self.embed_dim, init, name="c_proj")(channels)
        w_q, b_q, w_k, w_v, b_v, w_c, b_c = (
            p.astype(self.dtype) for p in (w_q, b_q, w_k, w_v, b_v, w_c, b_c)
        )

        tokens = x.reshape(num, height * width, channels)
        mean = tokens.astype(jnp.float32).mean(1, keepdims=True).astype(self.dtype)
        tokens = jnp.concatenate([mean, tokens], 1) + positions
        head_dim = channels // self.num_heads
        per_head = (channels, self.num_heads, head_dim)
        query = (tokens[:, 0] @ w_q + b_q) * head_dim**-0.5
        query = query.reshape(num, self.num_heads, head_dim)
        lookup = jnp.einsum("nhd,ehd->nhe", query, w_k.reshape(per_head))
        scores = jnp.einsum("nhe,nte->nht", lookup, tokens, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("nht,nte->nhe", weights, tokens)
        values = jnp.einsum("nhe,ehd->nhd", mixed, w_v.reshape(per_head)).reshape(num, channels)
        return (values + b_v) @ w_c + b_c
