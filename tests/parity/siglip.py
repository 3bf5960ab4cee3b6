"""A converted SigLIP against the outputs of its library (``siglip_models.Outputs``)."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from parity.comparison import relative_error
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.concept_classifier import concept_logits


def compare_converted(directory: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the relative errors of a converted model against a library's outputs."""
    variables, card = load_model(directory)
    model, variables = CLIP(card.architecture), jax.tree.map(jnp.asarray, variables)

    @jax.jit
    def outputs(pixels, other, tokens):
        found, others = (
            model.apply(variables, x.transpose(0, 2, 3, 1), method=model.image_features)
            for x in (pixels, other)
        )
        return found, others, model.apply(variables, tokens, method=model.encode_text)

    found, other, texts = outputs(
        jnp.array(arrays["pixels"]),
        jnp.array(arrays["other_pixels"]),
        jnp.array(arrays["tokens"], jnp.int32),
    )
    detection = card.scores.detection
    logits = concept_logits(found.whole, texts, detection.temperature) + detection.score_bias
    computed = {
        "whole": found.whole, "dense": found.map, "texts": texts, "logits": logits,
        "other_whole": other.whole, "other_dense": other.map,
    }  # fmt: skip
    return {name: relative_error(value, arrays[name]) for name, value in computed.items()}
