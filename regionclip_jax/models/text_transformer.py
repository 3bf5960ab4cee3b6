"""CLIP's causal text transformer (docs/reference/text.md#text-encoder)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regionclip_jax.models.rematerialization import RematPolicy
from regionclip_jax.models.transformer_blocks import Activation, BlockStack, layer_norm


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Architecture of CLIP's text tower."""

    vocab_size: int
    # Number of positions, in tokens.
    context_length: int
    width: int
    heads: int
    layers: int
    activation: Activation = "quick_gelu"
    # Epsilon of the layer norms.
    eps: float = 1e-5
    # Name in ``text.tokenizer``.
    tokenizer: str = "clip"
    # Hidden channels of the MLPs; None: four times the width.
    mlp_width: int | None = None

    def num_read(self, tokens: Int[np.ndarray, "N L"]) -> int:
        """Return the number of leading columns of ``tokens`` that decide the embeddings.

        The mask is causal, so no column behind the last end token (the largest id) does.
        """
        return int(tokens.argmax(1).max()) + 1


class TextTransformer(nn.Module):
    """Text tower: one embedding per text, read at the end-of-text token; not normalised."""

    config: TextConfig
    embed_dim: int
    dtype: jnp.dtype = jnp.float32
    remat: RematPolicy = "all"

    def setup(self):
        c, normal = self.config, nn.initializers.normal
        self.token_embedding = self.param("token_embedding", normal(0.02), (c.vocab_size, c.width))
        self.positional_embedding = self.param(
            "positional_embedding", normal(0.01), (c.context_length, c.width)
        )
        self.blocks = BlockStack(c, self.dtype, self.remat)
        self.ln_final = layer_norm(c.eps, self.dtype)
        self.projection = self.param("projection", normal(c.width**-0.5), (c.width, self.embed_dim))

    def __call__(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        """Embed texts; the end-of-text token has the largest id, so the argmax finds it.

        A text cut before its end token is read at its start token, which does not attend to the
        words. This is the reference's behaviour (docs/reference/text.md#truncation). This package's
        tokenizer keeps the end token. Texts shorter than the context may be cut to any length: the
        mask is causal, so tokens behind the end token have no effect.
        """
        length = tokens.shape[1]
        x = self.token_embedding[tokens] + self.positional_embedding[:length]
        causal = jnp.asarray(np.tril(np.ones((1, length, length), bool)))
        x = self.ln_final(self.blocks(x.astype(self.dtype), causal))
        ends = jnp.take_along_axis(x, tokens.argmax(-1)[:, None, None], axis=1)[:, 0]
        return ends @ self.projection.astype(self.dtype)
