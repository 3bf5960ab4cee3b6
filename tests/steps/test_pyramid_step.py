"""Training and prediction of a detector on a feature pyramid of a frozen nano ViT or EVA-02."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marks import on_accelerators
from regionclip_jax.models.clip import CLIP, init_variables
from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.models.vit_pyramid import (
    PYRAMID_HEADS,
    PyramidConfig,
    PyramidHeads,
    init_pyramid_heads,
)
from regionclip_jax.ops import arguments  # noqa: F401  (settings are arguments of jit)
from regionclip_jax.settings import DetectionSettings, DetectorObjective, ProposalSettings
from regionclip_jax.steps.detector_step import FrozenDetectorParts, clip_part
from regionclip_jax.steps.predict_step import DetectorVariables, given_boxes
from regionclip_jax.steps.pyramid_predict_step import make_pyramid_predict_step
from regionclip_jax.steps.pyramid_step import make_pyramid_step
from regionclip_jax.steps.train_state import create_train_state
from regionclip_jax.training.initialization import draw_parameters

# A step compiles for a quarter of a minute on one core.
pytestmark = pytest.mark.slow

TOWERS = {
    "vit": ViTConfig(patch_size=16, layers=5, width=16, heads=2),
    "eva": EVAConfig(patch_size=16, layers=5, width=16, heads=2, mlp_width=20),
}
CONFIG = PyramidConfig((1, 2, 3, 4), 16, channels=8)
PROPOSALS = ProposalSettings(num_proposals=12, pre_nms_topk=40, nms_threshold=0.7)
FROZEN = ("^visual/", "^text/", "^logit_scale", "background_embedding$")


def objective(with_masks: bool) -> DetectorObjective:
    return DetectorObjective(
        proposals=PROPOSALS,
        pyramid_blocks=CONFIG.from_blocks,
        samples_per_image=8,
        positive_fraction=0.5,
        temperature=0.02,
        background_weight=0.6,
        focal_gamma=0.0,
        mask_size=4 if with_masks else None,
        regions_per_chunk=None,
    )


@pytest.fixture(scope="module", params=["vit", pytest.param("eva", marks=pytest.mark.slow)])
def trained(request, nano_configs, box_batch):
    """Model, heads, start, state after ten steps, frozen parts, metrics of all steps, and the step.

    The ViT's detector has masks and computes in fp32, that of EVA has none and bf16.
    """
    with_masks = request.param == "vit"
    dtype = jnp.float32 if with_masks else jnp.bfloat16
    config = dataclasses.replace(nano_configs["vit"], image=TOWERS[request.param])
    model = CLIP(config, dtype=dtype)
    heads = PyramidHeads(CONFIG, config.embed_dim, with_masks, frozen_norm=False, dtype=dtype)
    clip = draw_parameters(init_variables, config, jax.random.key(0))
    own = draw_parameters(init_pyramid_heads, heads, jax.random.key(1))
    rng = np.random.default_rng(1)
    own["params"] |= {
        "background_embedding": jnp.asarray(rng.normal(size=32), jnp.float32),
        "logit_factor": jnp.float32(50.0),
    }
    variables = {
        "params": clip["params"] | {PYRAMID_HEADS: own["params"]},
        "batch_stats": {PYRAMID_HEADS: own["batch_stats"]},
    }
    optimizer = optax.adamw(2e-3)
    state = start = create_train_state(variables, FROZEN, optimizer)
    frozen = FrozenDetectorParts(None, rng.normal(size=(5, 32)).astype(np.float32))
    step = jax.jit(make_pyramid_step(model, heads, optimizer, objective(with_masks), seed=0))
    metrics = []
    for _ in range(10):
        state, of_step = step(state, frozen, box_batch)
        metrics.append(jax.device_get(of_step))
    return model, heads.clone(frozen_norm=True), start, state, frozen, metrics, step


@on_accelerators
def test_losses_fall_and_the_tower_stays(trained):
    _, heads, start, state, _, metrics, _ = trained
    names = ["loss", "loss_objectness", "loss_classification"]
    names += ["loss_mask"] if heads.with_masks else []
    for name in names:
        first, last = (np.mean([m[name] for m in some]) for some in (metrics[:3], metrics[-3:]))
        assert last < first, name
    assert all(np.isfinite(jax.tree.leaves(metrics)))
    assert all(m["skipped_records"] == 1 for m in metrics)
    assert set(state.params) == {PYRAMID_HEADS}
    assert set(state.frozen_params) == {"visual", "text", "logit_scale", PYRAMID_HEADS}
    for a, b in zip(
        jax.tree.leaves(start.frozen_params), jax.tree.leaves(state.frozen_params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        (start.params, start.batch_stats),
        (state.params, state.batch_stats),
    )
    assert all(jax.tree.leaves(moved))


def predict_with(trained, find):
    """Return ``(settings, batch, **changes) -> Prediction`` of a trained detector.

    Programs depend on the counts and choices of the settings alone. ``changes`` replace variables.
    """
    model, heads, _, state, frozen, *_ = trained
    variables = state.variables
    own = {name: tree[PYRAMID_HEADS] for name, tree in variables.items()}
    usual = DetectorVariables(clip_part(variables), frozen.class_embeddings, pyramid_heads=own)
    step = jax.jit(
        lambda settings, given, batch: make_pyramid_predict_step(model, heads, settings, find)(
            given, batch
        )
    )
    return lambda settings, batch, **changes: jax.device_get(
        step(settings, usual.replace(**changes), batch)
    )


SETTINGS = DetectionSettings(
    temperature=1 / 75, objectness="none", score_threshold=0.0, max_detections=9
)


@on_accelerators
def test_detections_have_scores_boxes_and_masks(trained, box_batch):
    heads = trained[1]
    chunks = dataclasses.replace(SETTINGS, regions_per_chunk=5)
    predict = predict_with(trained, PROPOSALS)
    found, chunked = (predict(settings, box_batch) for settings in (SETTINGS, chunks))
    detections = found.detections
    assert detections.mask[:7].all() and not detections.mask[7].any()
    assert (detections.scores[:7] <= 1).all() and found.regions.mask[:7].any(1).all()
    assert (np.diff(detections.scores[:7], axis=1) <= 0).all()
    if heads.with_masks:
        assert detections.object_masks.shape == (8, 9, 28, 28)
        np.testing.assert_allclose(chunked.detections.scores, detections.scores, atol=1e-5)
    else:
        assert detections.object_masks is None


def test_fusion_moves_scores_of_trained_and_other_classes_by_their_exponents(trained, box_batch):
    """Scores of one region are the products of powers."""
    every = dataclasses.replace(
        SETTINGS, max_detections=5, nms=dataclasses.replace(SETTINGS.nms, threshold=1.0)
    )
    batch = jax.tree.map(lambda x: x[:1], box_batch)
    box_mask = np.zeros_like(batch.box_mask)
    box_mask[0, 0] = True
    batch = batch.replace(box_mask=box_mask)
    base = jnp.array([True, False, True, False, False])

    predict = predict_with(trained, given_boxes)

    def scores(base_fusion, novel_fusion):
        settings = dataclasses.replace(every, base_fusion=base_fusion, novel_fusion=novel_fusion)
        found = predict(settings, batch, trained_classes=base).detections
        assert found.mask.all()
        np.testing.assert_allclose(found.boxes[0], np.tile(batch.boxes[0, 0], (5, 1)), atol=1e-4)
        order = np.argsort(found.classes[0])
        return found.scores[0][order]

    own, tower = scores(0.0, 0.0), scores(1.0, 1.0)
    assert np.abs(own - tower).max() > 0.01
    exponents = np.where(base, 0.1, 0.8)
    np.testing.assert_allclose(
        scores(0.1, 0.8), own ** (1 - exponents) * tower**exponents, rtol=1e-4
    )
    np.testing.assert_array_equal(scores(0.0, 0.8)[np.asarray(base)], own[np.asarray(base)])


@pytest.mark.property
def test_several_devices_make_the_updates_of_one(
    trained, box_batch, two_updates, assert_same_update
):
    """Live norms use the global batch, over canvases and over regions."""
    _, heads, _, state, frozen, _, step = trained
    if not heads.with_masks:
        pytest.skip("roundings of bf16 depend on the shards")
    # Adam divides a gradient by its own size, so its first updates would show rounding.
    state = state.replace(step=jnp.int32(10))
    (expected, losses), (found, metrics) = (
        two_updates(step, state, frozen, box_batch, mesh) for mesh in (None, (8, 4))
    )
    for one, several in zip(losses, metrics, strict=True):
        norms = [float(step_metrics.pop("gradient_norm")) for step_metrics in (one, several)]
        np.testing.assert_allclose(*norms, rtol=1e-3)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)
    assert_same_update(state, found, expected, tolerance=0.05)
