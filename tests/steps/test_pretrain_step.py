import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.steps.pretrain_step import (
    Frozen,
    PretrainSettings,
    embed_with_student,
    find_regions,
    make_pretrain_step,
)
from regionclip_jax.steps.train_state import create_train_state
from regionclip_jax.structures import Regions

OPTIMIZER = optax.sgd(0.02, momentum=0.9)
SETTINGS = PretrainSettings(
    num_proposals=12,
    num_regions=5,
    pre_nms_topk=40,
    proposal_nms_threshold=0.9,
    box_grid=8,
    box_sides=None,
    temperature=0.1,
    teacher_temperature=0.1,
    concept_threshold=0.3,
    images_per_group=4,
    image_text_weight=1.0,
    distillation_weight=1.0,
    contrastive_weight=1.0,
    global_box="image",
    regions_per_chunk=3,
    roi_align="auto",
    seed=1,
)
FROZEN = {
    "resnet": ("^text/", "^logit_scale$", "^visual/stem/", "^visual/layer1/", "norm"),
    "vit": ("^text/", "^logit_scale$", "embedding"),
}


@pytest.fixture(scope="module")
def start(nano_configs, nano_variables):
    """``start(name)``: the jitted step, the state before it, and what it only reads.

    The teacher has other weights than the student.
    """

    @functools.cache
    def make(name):
        model = CLIP(nano_configs[name])
        state = create_train_state(nano_variables(name), FROZEN[name], OPTIMIZER)
        concepts = jax.random.normal(jax.random.key(3), (2, 10, 32))
        frozen = Frozen(
            teacher=nano_variables(name, seed=1),
            teacher_concepts=concepts[0],
            student_concepts=concepts[1],
        )
        return jax.jit(make_pretrain_step(model, model, OPTIMIZER, SETTINGS)), state, frozen

    return make


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_losses_fall_and_what_is_frozen_stays(start, pair_batch, name):
    step, first, frozen = start(name)
    state, history = first, []
    for _ in range(15):
        # The regions of step 0 again and again: the batch is fixed, whole.
        state, metrics = step(state.replace(step=first.step), frozen, pair_batch)
        history.append(jax.tree.map(float, metrics))
    begin, end = history[0], history[-1]
    assert end["loss"] < 0.8 * begin["loss"], (begin, end)
    for loss in ("loss_image_text", "loss_distillation", "loss_contrastive"):
        assert end[loss] < begin[loss], (loss, begin[loss], end[loss])
    assert begin["loss"] == pytest.approx(sum(begin[k] for k in begin if "loss_" in k), rel=1e-5)
    assert 0 < begin["labels_kept"] <= 1 and 0.1 < begin["labels_confidence"] <= 1
    # The teacher never moves, so neither do its labels.
    assert end["labels_kept"] == begin["labels_kept"]
    for part in ("frozen_params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(first, part))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state.params, first.params)),
                                              strict=True))  # fmt: skip


def test_devices_make_the_updates_of_one(start, pair_batch, two_updates, assert_same_update):
    """Groups of four images span four devices, or two pairs of them that share the parameters.
    Measured of one update: 2.1e-5 of the largest change of a parameter."""
    step, state, frozen = start("resnet")
    expected, expected_metrics = two_updates(step, state, frozen, pair_batch)
    for mesh in ((8, 1), (4, 2)):
        found, metrics = two_updates(step, state, frozen, pair_batch, mesh)
        for one, other in zip(expected_metrics, metrics, strict=True):
            for name, value in one.items():
                assert other[name] == pytest.approx(float(value), rel=1e-4), name
        assert_same_update(state, found, expected)


def test_bytes_on_the_padding_change_nothing(start, pair_batch):
    """Picture 2 ends at row 48, picture 5 at column 40."""
    step, state, frozen = start("resnet")
    images = pair_batch.images.at[2, 48:].set(200).at[5, :, 40:].set(77)
    expected, metrics = step(state, frozen, pair_batch)
    found, other_metrics = step(state, frozen, pair_batch.replace(images=images))
    assert metrics == other_metrics
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_batches_with_skipped_records_even_without_any_other_keep_the_step_finite(
    start, pair_batch
):
    """The first four records are one group, which then has no region at all."""
    step, state, frozen = start("resnet")
    for real in (4, 0):
        mask = jnp.arange(8) >= 8 - real
        zeros = jax.tree.map(
            lambda x, m=mask: jnp.where(m.reshape(-1, *[1] * (x.ndim - 1)), x, 0), pair_batch
        )
        new, metrics = step(state, frozen, zeros.replace(mask=mask))
        assert metrics["skipped_records"] == 8 - real
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves((new, metrics)))
        assert (metrics["loss"] == 0) == (real == 0)


def test_regions_are_drawn_anew_in_every_step_inside_each_picture(pair_batch):
    sizes = pair_batch.sizes.at[7].set(0)
    keys = map(jax.random.key, range(2))
    draws = [find_regions(k, pair_batch.images, sizes, SETTINGS, None, None) for k in keys]
    assert (draws[0].boxes != draws[1].boxes).any()
    for regions in draws:
        assert regions.boxes.shape == (8, 5, 4)
        limits = np.asarray(sizes)[:, None, ::-1]
        assert (np.asarray(regions.boxes[..., 2:]) <= limits).all()
        np.testing.assert_array_equal(regions.mask, np.repeat(np.arange(8)[:, None] < 7, 5, 1))


@pytest.mark.property
def test_the_whole_pictures_box_ends_with_the_picture_unless_the_canvas_is_asked_for(
    nano_configs, nano_variables, relative_error
):
    """More padding beyond what convolutions can see changes nothing but the canvas' own box."""
    model, variables = CLIP(nano_configs["resnet"]), nano_variables("resnet")
    picture = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    box = jnp.array([[[8.0, 8.0, 40.0, 60.0]]])
    regions = Regions(boxes=box, scores=jnp.zeros((1, 1)), mask=jnp.ones((1, 1), bool))

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def embed(picture, padding, global_box):
        settings = dataclasses.replace(SETTINGS, global_box=global_box, regions_per_chunk=None)
        pixels = jnp.pad(picture, ((0, 0), (0, 0), (0, padding), (0, 0)))
        sizes = jnp.array([[64, 64]])
        return embed_with_student(model, variables, pixels, sizes, regions, settings)

    (region, image), (wide_region, wide_image) = (embed(picture, p, "image") for p in (64, 96))
    assert relative_error(image, wide_image) < 1e-5
    assert relative_error(region, wide_region) < 1e-5
    (_, canvas), (_, wide_canvas) = (embed(picture, p, "canvas") for p in (64, 96))
    assert relative_error(canvas, wide_canvas) > 1e-2
    (_, bare_image), (_, bare_canvas) = (embed(picture, 0, b) for b in ("image", "canvas"))
    np.testing.assert_array_equal(bare_image, bare_canvas)


def test_a_localizers_proposals_are_sampled_and_the_student_learns_from_them(
    start, pair_batch, reference_localizer, nano_configs
):
    step, state, frozen = start("resnet")
    config, variables = reference_localizer("tiny_rpn_fpn")
    localizer = Localizer(config)
    images, sizes = pair_batch.images, pair_batch.sizes.at[7].set(0)
    key, settings = jax.random.key(0), dataclasses.replace(SETTINGS, num_proposals=30)
    found = find_regions(key, images, sizes, settings, localizer, variables)
    everything = propose(
        localizer, variables, images, sizes,
        pre_nms_topk=settings.pre_nms_topk, post_nms_topk=30, nms_threshold=0.9,
    )  # fmt: skip
    assert found.boxes.shape == (8, 5, 4) and found.mask[:7].all() and not found.mask[7].any()
    for image in range(7):
        known = {tuple(box) for box in np.asarray(everything.boxes[image])}
        mine = {tuple(box) for box in np.asarray(found.boxes[image])}
        assert len(mine) == 5 and mine <= known
    model = CLIP(nano_configs["resnet"])
    proposing = jax.jit(make_pretrain_step(model, model, OPTIMIZER, settings, localizer))
    _, first = proposing(state, frozen.replace(localizer=variables), pair_batch)
    for _ in range(8):
        state, last = proposing(state, frozen.replace(localizer=variables), pair_batch)
    assert last["loss"] < first["loss"]
