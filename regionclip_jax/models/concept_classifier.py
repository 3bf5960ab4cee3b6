"""Region embeddings against class embeddings: the classifier that text makes.

Source: paper section 3.4; docs/reference/detection.md#classifier. Nothing here has parameters: the
rows of a classifier are the text tower's embeddings of class names. Both sides are brought to unit
length here, so embeddings are stored and passed around as the towers give them. The reference's
background class has an embedding of zeros that is never trained: its logit is 0, whatever the
region.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.ops.unit_length import unit_length


def concept_logits(
    regions: Float[Array, "*regions D"], concepts: Float[Array, "C D"], temperature: float
) -> Float[Array, "*regions C"]:
    """Cosines of regions and concepts over the temperature, fp32."""
    return unit_length(regions) @ unit_length(concepts).T / temperature


def with_background(logits: Float[Array, "*regions C"]) -> Float[Array, "*regions C+1"]:
    """Logits of the classes and, last, the zero logit of the background."""
    return jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, 1)])


def class_probabilities(
    regions: Float[Array, "*regions D"], classes: Float[Array, "C D"], temperature: float
) -> Float[Array, "*regions C"]:
    """Softmax over classes and background, without the background's share: rows sum to below 1.

    Args:
        regions: embeddings of any length.
        classes: embeddings of the class names, of any length.
        temperature: the paper's is 0.01.
    """
    logits = with_background(concept_logits(regions, classes, temperature))
    return jax.nn.softmax(logits, axis=-1)[..., :-1]
