"""CLIP's causal text transformer (docs/reference/text.md#text-encoder)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from regionclip_jax.models.rematerialization import KeptActivations
from regionclip_jax.models.transformer_blocks import BlockStack, LayerNorm


class TextTransformer(nn.Module):
    """Text tower: one embedding per text, read at the end-of-text token; not normalised."""

    vocab_size: int
    context_length: int
    width: int
    num_heads: int
    num_layers: int
    embed_dim: int
    dtype: jnp.dtype = jnp.float32
    kept_activations: KeptActivations = "all"

    def setup(self):
        normal = nn.initializers.normal
        self.token_embedding = self.param(
            "token_embedding", normal(0.02), (self.vocab_size, self.width)
        )
        self.positional_embedding = self.param(
            "positional_embedding", normal(0.01), (self.context_length, self.width)
        )
        self.blocks = BlockStack(self.num_layers, self.num_heads, self.dtype, self.kept_activations)
        self.ln_final = LayerNorm()
        self.projection = self.param(
            "projection", normal(self.width**-0.5), (self.width, self.embed_dim)
        )

    def __call__(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        """Embed texts; the end-of-text token has the largest id, so the argmax finds it.

        A text cut before its end token is read at its start token, which does not attend to the
        words. This is the reference's behaviour (docs/reference/text.md#truncation). This package's
        tokenizer keeps the end token. Texts shorter than the context may be cut to any length: the
        mask is causal, so tokens behind the end token have no effect.
        """
        length = tokens.shape[1]
        x = self.token_embedding[tokens] + self.positional_embedding[:length]
        causal = jnp.tril(jnp.ones((1, length, length), bool))
        x = self.ln_final(self.blocks(x.astype(self.dtype), causal))
        ends = jnp.take_along_axis(x, tokens.argmax(-1)[:, None, None], axis=1)[:, 0]
        return ends @ self.projection.astype(self.dtype)
