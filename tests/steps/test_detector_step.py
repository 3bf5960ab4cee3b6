"""Steps of detector and localizer training; the number of devices does not change them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marks import on_accelerators
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.detector_heads import MaskHead
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.settings import DetectorObjective, LocalizerObjective, ProposalSettings
from regionclip_jax.steps.detector_step import (
    FrozenDetectorParts,
    make_detector_step,
)
from regionclip_jax.steps.localizer_step import make_localizer_step
from regionclip_jax.steps.train_state import create_train_state
from regionclip_jax.structures import DetectionBatch

SETTINGS = DetectorObjective(
    proposals=ProposalSettings(num_proposals=20, pre_nms_topk=40, nms_threshold=0.7),
    samples_per_image=8,
    positive_fraction=0.5,
    temperature=0.1,
    mask_size=4,
    regions_per_chunk=2,
)
FROZEN = ("visual/stem/", "norm", "^text/", "^logit_scale")


@pytest.fixture(scope="module")
def batch(box_batch) -> DetectionBatch:
    return box_batch


@pytest.fixture(scope="module")
def parts(nano_configs, nano_variables, nano_localizer):
    """Jitted step, state and frozen parts of a nano detector with a mask head."""
    card, localizer = nano_localizer
    rng = np.random.default_rng(1)
    clip = nano_variables("resnet")
    heads = {
        "box_head": {
            "deltas": {
                "kernel": jnp.asarray(rng.normal(size=(32, 4)) * 0.01, jnp.float32),
                "bias": jnp.zeros(4),
            }
        },
        "mask_head": MaskHead().init(jax.random.key(0), jnp.zeros((1, 1, 1, 256)))["params"],
    }
    variables = {"params": clip["params"] | heads, "batch_stats": clip["batch_stats"]}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05))
    frozen = FrozenDetectorParts(localizer, rng.normal(size=(5, 32)).astype(np.float32))
    state = create_train_state(variables, FROZEN, optimizer)

    @functools.cache
    def make(frozen_norm=True, **changes):
        model = CLIP(nano_configs["resnet"], frozen_norm)
        settings = dataclasses.replace(SETTINGS, **changes)
        step = make_detector_step(model, Localizer(card.architecture), optimizer, settings, seed=0)
        return jax.jit(step)

    return make, state, frozen


@pytest.mark.property
@pytest.mark.parametrize("live_norm", [False, True])
def test_several_devices_make_the_updates_of_one(
    parts, batch, two_updates, assert_same_update, live_norm
):
    """Live norms of a tower from random weights use the global batch."""
    make, state, frozen = parts
    step = make(frozen_norm=False, mask_size=None, regions_per_chunk=None) if live_norm else make()
    (expected, losses), (found, metrics) = (
        two_updates(step, state, frozen, batch, mesh) for mesh in (None, (8, 4))
    )
    for one, several in zip(losses, metrics, strict=True):
        # In the second step rounding may move a ReLU past zero: gradients change, losses do not.
        norms = [float(step_metrics.pop("gradient_norm")) for step_metrics in (one, several)]
        np.testing.assert_allclose(*norms, rtol=1e-3)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    assert_same_update(state, found, expected)


@on_accelerators
def test_losses_fall_and_frozen_parameters_stay(parts, batch):
    make, state, frozen = parts
    step, start = make(), state
    losses = []
    for _ in range(12):
        state, metrics = step(state, frozen, batch)
        losses.append(jax.device_get(metrics))
    for name in ("loss", "loss_classification", "loss_mask"):
        first, last = (np.mean([m[name] for m in some]) for some in (losses[:3], losses[-3:]))
        assert last < first, name
    for a, b in zip(
        jax.tree.leaves((start.frozen_params, start.batch_stats)),
        jax.tree.leaves((state.frozen_params, state.batch_stats)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_padding_row_changes_no_loss(parts, batch):
    """The losses are those of the seven images."""
    make, state, frozen = parts
    seven = jax.tree.map(lambda x: x[:7], batch)
    step = make(regions_per_chunk=None)
    whole, part = (jax.device_get(step(state, frozen, b)[1]) for b in (batch, seven))
    assert whole["skipped_records"] == 1 and part["skipped_records"] == 0
    # The draws differ with the number of rows, so counts are compared, not sums.
    assert whole["positives"] == pytest.approx(part["positives"], abs=0.05)
    assert all(np.isfinite(jax.tree.leaves(whole)))


def test_masks_need_the_objects_rasters(parts, batch):
    make, state, frozen = parts
    with pytest.raises(ValueError, match="the batch has no object_masks"):
        jax.eval_shape(make(), state, frozen, batch.replace(object_masks=None))


@pytest.fixture(scope="module")
def localizer_parts(nano_localizer):
    """Jitted step and state of a nano localizer with live norms."""
    card, variables = nano_localizer
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05))
    settings = LocalizerObjective(anchors_per_image=32)
    localizer = Localizer(card.architecture, frozen_norm=False)
    step = make_localizer_step(localizer, optimizer, settings, seed=0)
    jitted = jax.jit(lambda state, frozen, batch: step(state, batch))
    return jitted, create_train_state(variables, (), optimizer)


@pytest.mark.property
def test_several_devices_make_the_updates_of_one_to_a_localizer(
    localizer_parts, batch, two_updates, assert_same_update
):
    """Live norms use the global batch."""
    step, start = localizer_parts
    (expected, metrics), (found, on_mesh) = (
        two_updates(step, start, (), batch, mesh) for mesh in (None, (4, 4))
    )
    for a, b in zip(jax.tree.leaves(metrics), jax.tree.leaves(on_mesh), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    assert_same_update(start, found, expected)


@on_accelerators
def test_a_localizers_losses_fall(localizer_parts, batch):
    step, state = localizer_parts
    losses = []
    for _ in range(15):
        state, metrics = step(state, (), batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
