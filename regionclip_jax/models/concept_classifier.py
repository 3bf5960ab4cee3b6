"""Classifier of regions: cosines of region embeddings and class embeddings.

Models of SigLIP's family have a bias beside their temperature and were trained with a sigmoid of
each pair alone. A softmax over classes would be wrong for them: ``independent_probabilities``.

Source: paper section 3.4; docs/reference/detection.md#classifier. There are no parameters: the rows
of a classifier are the text tower's embeddings of class names. Both sides are normalised here, so
embeddings are stored and passed without normalisation. The reference's background class has an
embedding of zeros that is never trained, so its logit is 0 for every region.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regionclip_jax.ops.normalization import unit_length
from regionclip_jax.settings import DetectionSettings
from regionclip_jax.structures import Number


def concept_logits(
    regions: Float[Array, "*regions D"], concepts: Float[Array, "C D"], temperature: Number
) -> Float[Array, "*regions C"]:
    """Return the cosines of regions and concepts divided by the temperature, in fp32."""
    return unit_length(regions) @ unit_length(concepts).T / temperature


def with_background(logits: Float[Array, "*regions C"]) -> Float[Array, "*regions C+1"]:
    """Append the zero logit of the background to the logits of the classes."""
    return jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, 1)])


def class_probabilities(
    regions: Float[Array, "*regions D"],
    classes: Float[Array, "C D"],
    temperature: Number,
    mask: Bool[Array, " C"] | None = None,
) -> Float[Array, "*regions C"]:
    """Return the softmax over classes and background, without the background's column.

    Rows therefore sum to less than 1.

    Args:
        regions: embeddings of any length.
        classes: embeddings of the class names, of any length.
        temperature: the paper's is 0.01.
        mask: classes that exist; the others have probability 0. None: all.
    """
    logits = concept_logits(regions, classes, temperature)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    return jax.nn.softmax(with_background(logits), axis=-1)[..., :-1]


def independent_probabilities(
    regions: Float[Array, "*regions D"],
    classes: Float[Array, "C D"],
    temperature: Number,
    bias: Number,
    mask: Bool[Array, " C"] | None = None,
) -> Float[Array, "*regions C"]:
    """Return the sigmoid of each logit; the rows have no particular sum.

    Args:
        regions, classes, temperature, mask: as in ``class_probabilities``.
        bias: summand of the cosines over the temperature.
    """
    probabilities = jax.nn.sigmoid(concept_logits(regions, classes, temperature) + bias)
    return probabilities if mask is None else jnp.where(mask, probabilities, 0.0)


def score_classes(
    regions: Float[Array, "*regions D"],
    classes: Float[Array, "C D"],
    settings: DetectionSettings,
    mask: Bool[Array, " C"] | None = None,
) -> Float[Array, "*regions C"]:
    """Return the probabilities that the settings state.

    Args:
        regions, classes, mask: as in ``class_probabilities``.
        settings: temperature, activation and bias, all of them stated.
    """
    if settings.score_activation == "sigmoid":
        return independent_probabilities(
            regions, classes, settings.temperature, settings.score_bias, mask
        )
    return class_probabilities(regions, classes, settings.temperature, mask)
