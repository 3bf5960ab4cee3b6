"""Settings as arguments of programs: which numbers they hold, and how these are rounded."""

import dataclasses

import jax
import numpy as np
import pytest

from regionclip_jax.ops import arguments  # noqa: F401
from regionclip_jax.settings import DetectionSettings, NmsSettings, ProposalSettings


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (DetectionSettings(), {"temperature": 1, "score_threshold": 0,
                                "nms": NmsSettings("hard", 0)}),
        (NmsSettings("linear"), {"threshold": 0.1, "sigma": 2, "prune": 0}),
        (ProposalSettings(), {"nms_threshold": 0}),
    ],
)  # fmt: skip
def test_numbers_are_arguments_and_the_rest_are_constants(settings, changes):
    structure = jax.tree.structure(settings)
    assert jax.tree.structure(dataclasses.replace(settings, **changes)) == structure
    assert jax.jit(lambda same: same)(settings) == settings
    assert {leaf.dtype for leaf in jax.tree.leaves(settings)} == {np.dtype(np.float32)}
    (constant,) = {"max_detections", "method", "num_proposals"} & vars(settings).keys()
    other = "gaussian" if constant == "method" else 7
    assert jax.tree.structure(dataclasses.replace(settings, **{constant: other})) != structure


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_the_threshold_of_hard_suppression_is_rounded_down(threshold):
    """An IoU of float32(0.3) is more than 0.3, so 0.3 is not rounded to it."""
    for settings in (ProposalSettings(nms_threshold=threshold), NmsSettings("hard", threshold)):
        rounded = jax.tree.leaves(settings)[0]
        assert float(rounded) <= threshold < float(np.nextafter(rounded, np.float32(2)))
    assert jax.tree.leaves(NmsSettings("linear", threshold))[0] == np.float32(threshold)
