"""Random weights of the benchmarks."""

import sys
from pathlib import Path

import numpy as np
import pytest

from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, unflatten
from regionclip_jax.models.clip import SIGMOID_BIAS
from regionclip_jax.models.presets import PRESETS

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from benchmarks.random_weights import draw_weights  # noqa: E402

_FAMILIES = ("RN50", "ViT-B/16", "EVA02-B-16", "ViT-B-16-SigLIP2")


@pytest.mark.parametrize("name", _FAMILIES)
def test_every_number_and_vector_of_every_family_is_drawn(name):
    shapes = flatten(abstract_variables(PRESETS[name]))
    # Matrices take seconds, and all are drawn by one rule.
    small = unflatten({path: leaf for path, leaf in shapes.items() if leaf.ndim < 2})
    drawn = flatten(draw_weights(small))
    assert drawn.keys() == flatten(small).keys()
    assert all(np.isfinite(value).all() for value in drawn.values())
    assert drawn["params/logit_scale"] == pytest.approx(np.log(100))
    assert drawn.get("params/logit_bias", SIGMOID_BIAS) == SIGMOID_BIAS
