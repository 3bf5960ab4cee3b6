"""SigLIP's text transformer (docs/reference/text.md#siglip)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from regionclip_jax.models.rematerialization import RematPolicy
from regionclip_jax.models.transformer_blocks import Activation, BlockStack, layer_norm


@dataclasses.dataclass(frozen=True)
class SigLIPTextConfig:
    """Architecture of SigLIP's text tower."""

    vocab_size: int
    # Number of positions, in tokens; every text is padded to all of them.
    context_length: int
    width: int
    heads: int
    layers: int
    activation: Activation = "gelu_tanh"
    # Epsilon of the layer norms.
    eps: float = 1e-6
    # Name in ``text.tokenizer``.
    tokenizer: str = "siglip"
    # Hidden channels of the MLPs; None: four times the width.
    mlp_width: int | None = None

    def num_read(self, tokens: Int[np.ndarray, "N L"]) -> int:
        """Return the context: padding is attended to, and the last position is read."""
        return self.context_length


class SigLIPTextTower(nn.Module):
    """Text tower without a mask: one embedding per text, read at the last position.

    The embeddings are not normalised.
    """

    config: SigLIPTextConfig
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
        self.head = nn.Dense(self.embed_dim, dtype=self.dtype)

    def __call__(self, tokens: Int[Array, "N L"]) -> Float[Array, "N D"]:
        """Embed texts.

        Raises:
            ValueError: texts are not padded to the context; they would have other embeddings.
        """
        if tokens.shape[1] != self.config.context_length:
            raise ValueError(
                f"SigLIP: expected texts of all {self.config.context_length} tokens, found "
                f"{tokens.shape[1]}; pad them with the tokenizer; a training has "
                "data.context_length"
            )
        x = self.token_embedding[tokens] + self.positional_embedding
        x = self.blocks(x.astype(self.dtype))
        return self.head(self.ln_final(x[:, -1]))
