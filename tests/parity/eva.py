"""EVA-02-CLIP against timm's trunk and open_clip's text tower (``golden/make_eva.py``)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from parity.comparison import Comparison, relative_error
from parity.golden import Arrays, make_state_dict, stored
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.conversion import eva_keys
from regionclip_jax.conversion.layouts import build_variables
from regionclip_jax.models.clip import CLIP, logit_scale_and_bias
from regionclip_jax.models.towers import CLIPConfig

# Kinds of arrays: at the grid of the positions, and at another one with unequal sides.
SIZES = ("own", "other")


@functools.cache
def tiny() -> tuple[CLIPConfig, dict]:
    """Return config and variables of the small model of ``eva_tiny.npz``."""
    tensors, _ = eva_keys.rename(make_state_dict("eva_tiny"), "student")
    config = eva_keys.infer_config(tensors, "eva_tiny")
    expected = abstract_variables(config)
    variables, _ = build_variables(expected, eva_keys.origin, tensors, where="eva_tiny", remedy="")
    return config, jax.tree.map(jnp.asarray, variables)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model: CLIP, variables: dict, pixels, tokens) -> dict:
    """Return the arrays of ``make_eva.outputs``."""

    def run(model, pixels, tokens):
        features = model.image_features(pixels)
        texts = model.encode_text(tokens)
        log_scale, _ = logit_scale_and_bias(variables["params"])
        unit = [
            x / jnp.linalg.norm(x, axis=-1, keepdims=True)
            for x in (features.whole.astype(jnp.float32), texts.astype(jnp.float32))
        ]
        return {
            "images": features.whole,
            "texts": texts,
            "logits": jnp.exp(log_scale) * unit[0] @ unit[1].T,
            "map": model.visual.project(features.map),
        }

    return model.apply(variables, pixels, tokens, method=run)


def compare_outputs(
    model: CLIP,
    variables: dict,
    pixels: np.ndarray,
    tokens: np.ndarray,
    expected: Arrays,
    what: str,
    tolerance: float,
) -> list[Comparison]:
    """Compare embeddings, logits and the projected map of NCHW pixels."""
    pixels = jnp.asarray(pixels.transpose(0, 2, 3, 1))
    actual = _outputs(model, variables, pixels, jnp.asarray(tokens, jnp.int32))
    return [
        Comparison(f"{what} {name}", relative_error(x, expected[name]), tolerance)
        for name, x in actual.items()
    ]


def compare_eva(dtype=jnp.float32) -> list[Comparison]:
    """Compare embeddings, logits and dense maps on two grids."""
    arrays = stored("eva_tiny")
    config, variables = tiny()
    comparisons = []
    for size in SIZES:
        expected = {name: arrays[f"{size}_{name}"] for name in ("images", "logits", "map")}
        comparisons += compare_outputs(
            CLIP(config, dtype=dtype),
            variables,
            arrays[f"{size}_pixels"],
            arrays["tokens"],
            expected | {"texts": arrays["texts"]},
            size,
            1e-5,
        )
    return comparisons
