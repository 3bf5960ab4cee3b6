import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marks import on_accelerators
from regionclip_jax.losses.crop_distillation import crop_distillation_loss
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.ops.crops import crop_and_letterbox
from regionclip_jax.ops.normalization import normalize_crops
from regionclip_jax.settings import DistillObjective
from regionclip_jax.steps import distill_step
from regionclip_jax.steps.distill_step import (
    FrozenTeacher,
    choose_boxes,
    keep_sized,
    make_distill_step,
)
from regionclip_jax.steps.train_state import create_train_state, step_key
from regionclip_jax.structures import ImageBatch, Regions

OPTIMIZER = optax.sgd(0.05, momentum=0.9)
SETTINGS = DistillObjective(boxes_per_image=3, max_split=3, crops_per_chunk=2)
FROZEN = ("^text/", "^logit_", "^visual/(?!blocks/)")


@pytest.fixture(scope="module")
def batch(pair_batch) -> ImageBatch:
    return ImageBatch(images=pair_batch.images, sizes=pair_batch.sizes, mask=pair_batch.mask)


@pytest.fixture(scope="module")
def start(nano_configs, nano_variables):
    """The jitted step, the state before it, and its frozen argument: a teacher of other weights."""
    model = CLIP(nano_configs["vit"])
    state = create_train_state(nano_variables("vit"), FROZEN, OPTIMIZER)
    step = jax.jit(make_distill_step(model, model, OPTIMIZER, SETTINGS, seed=1))
    return step, state, FrozenTeacher(teacher=nano_variables("vit", seed=1))


def unit(x):
    return x / np.linalg.norm(x)


def plain_average(cells, box):
    """Return the mean of bilinear samples of a map [h, w, D], one or less a cell apart."""
    height, width, _ = cells.shape
    total, number = 0.0, 0
    (x1, y1, x2, y2) = box / 16 - 0.5
    rows, columns = int(np.ceil(y2 - y1)), int(np.ceil(x2 - x1))
    for i in range(rows):
        for j in range(columns):
            y = np.clip(y1 + (i + 0.5) * (y2 - y1) / rows, 0, height - 1)
            x = np.clip(x1 + (j + 0.5) * (x2 - x1) / columns, 0, width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = cells[top, left] * (1 - x + left) + cells[top, right] * (x - left)
            lower = cells[bottom, left] * (1 - x + left) + cells[bottom, right] * (x - left)
            total, number = total + upper * (1 - y + top) + lower * (y - top), number + 1
    return total / number


@on_accelerators
def test_the_loss_equals_a_loop_over_images_and_boxes(start, batch, nano_configs, nano_variables):
    """Each map is projected, normalised and sampled in NumPy. Measured: 6e-8."""
    step, state, frozen = start
    model, preprocessing = CLIP(nano_configs["vit"]), nano_configs["vit"].preprocessing
    student, projection = nano_variables("vit"), nano_variables("vit")["params"]["visual"]
    choose = jax.jit(
        lambda step: choose_boxes(
            step_key(1, step), batch.images, batch.sizes, SETTINGS, None, None
        )[0]
    )
    boxes = choose(state.step)

    # Without sizes the canvas is the image, so these are the images that fill it.
    whole = [i for i in range(8) if batch.sizes[i].tolist() == [64, 64]]

    @jax.jit
    def embed(images):
        """Return the maps of whole images, and the teacher's embeddings of all crops."""
        pixels = normalize_crops(images.astype(jnp.float32), preprocessing)
        crops = crop_and_letterbox(batch.images, boxes.boxes, batch.sizes, 64)
        crops = normalize_crops(crops.reshape(24, 64, 64, 3), preprocessing)
        targets = model.apply(frozen.teacher, crops, method=model.encode_image)
        features = model.apply(student, pixels, method=model.image_features)
        return features.map, targets.reshape(8, 3, -1)

    dense, targets = map(np.asarray, embed(batch.images))
    cosines = []
    for i in whole:
        cells = dense[i].astype(np.float64) @ np.asarray(projection["projection"])
        cells = np.apply_along_axis(unit, -1, cells)
        for box, target, real in zip(
            *map(np.asarray, (boxes.boxes[i], targets[i], boxes.mask[i])), strict=True
        ):
            if real:
                cosines.append(unit(plain_average(cells, box)) @ unit(target))

    only = batch.replace(mask=jnp.isin(jnp.arange(8), jnp.array(whole)))
    _, metrics = step(state, frozen, only)
    assert metrics["loss"] == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    assert metrics["boxes_per_image"] == pytest.approx(len(cosines) / len(whole))
    assert metrics["skipped_records"] == 2 and len(cosines) > 8


@on_accelerators
def test_the_loss_falls_and_frozen_parameters_do_not_change(start, batch):
    step, first, frozen = start
    state, losses = first, []
    for _ in range(12):
        # Every step has the boxes of step 0, so that the batch is fixed.
        state, metrics = step(state.replace(step=first.step), frozen, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0], losses
    jax.tree.map(np.testing.assert_array_equal, state.frozen_params, first.frozen_params)
    assert set(state.params) == {"visual"} and set(state.params["visual"]) == {"blocks"}
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, first.params)
    unmoved = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree.leaves_with_path(moved)
        if not leaf
    ]
    # Attention of each token to itself alone has no queries; one key bias has no effect anyway.
    assert all("block1/attention/q_" in p or "/attention/k_" in p for p in unmoved), unmoved


def test_the_teacher_has_no_gradient(start, batch):
    step, state, frozen = start
    gradients = jax.jit(jax.grad(lambda frozen: step(state, frozen, batch)[1]["loss"]))(frozen)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_skipped_records_and_padding_have_no_effect(start, batch):
    """Change a skipped image, and the padding of image 2 below row 48."""
    step, state, frozen = start
    masked = batch.replace(mask=batch.mask.at[3].set(False))
    expected, metrics = step(state, frozen, masked)
    images = masked.images.at[3].set(255).at[2, 48:].set(200)
    actual, other = step(state, frozen, masked.replace(images=images))
    assert metrics == other and metrics["skipped_records"] == 1
    jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)
    zeros = jax.tree.map(jnp.zeros_like, batch)
    after, metrics = step(state, frozen, zeros)
    assert metrics["loss"] == 0 and metrics["gradient_norm"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_masked_boxes_have_no_effect_on_the_loss():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mask = np.array([[True, False, True], [False, True, False]])
    expected = np.mean(
        [1 - unit(a) @ unit(b) for a, b in zip(student[mask], teacher[mask], strict=True)]
    )
    loss = jax.jit(jax.value_and_grad(crop_distillation_loss))
    student, teacher, mask = map(jnp.asarray, (student, teacher, mask))
    value, gradient = loss(student, teacher, mask)
    assert value == pytest.approx(expected, rel=1e-6)
    assert loss(student, teacher.at[0, 1].set(9.0), mask)[0] == value
    np.testing.assert_array_equal((np.asarray(gradient) != 0).any(-1), mask)
    # An empty box has an embedding of zeros.
    value, gradient = loss(student * 0, teacher, mask)
    assert value == 1 and np.isfinite(gradient).all()
    assert loss(student, teacher, mask & False)[0] == 0


def test_eight_devices_make_the_updates_of_one(start, batch, two_updates, assert_same_update):
    """Two devices share the parameters. Measured: 8e-6 of the largest change of a parameter."""
    step, state, frozen = start
    expected, metrics = two_updates(step, state, frozen, batch)
    actual, others = two_updates(step, state, frozen, batch, (8, 2))
    for one, other in zip(metrics, others, strict=True):
        for name, value in one.items():
            assert other[name] == pytest.approx(float(value), rel=1e-4), name
    assert_same_update(state, actual, expected)


def test_proposals_of_a_wrong_area_are_masked_and_a_corner_replaces_none():
    settings = DistillObjective(boxes="proposals", box_sides=(8, 32))
    boxes = jnp.array(
        [
            [[0, 0, 4, 15], [0, 0, 4, 16], [0, 0, 32, 32], [0, 0, 33, 32]],
            [[5, 5, 6, 6], [0, 0, 60, 60], [0, 0, 16, 16], [0, 0, 0, 0]],
            [[0, 0, 0, 0]] * 4,
        ],
        jnp.float32,
    )
    mask = jnp.array([[True] * 4, [True, True, False, False], [False] * 4])
    sizes = jnp.array([[64, 64], [40, 60], [0, 0]])
    regions = Regions(boxes=boxes, scores=jnp.zeros((3, 4)), mask=mask)
    kept = jax.jit(lambda regions: keep_sized(regions, sizes, settings))(regions)
    np.testing.assert_array_equal(
        kept.mask, [[False, True, True, False], [True] + [False] * 3, [False] * 4]
    )
    np.testing.assert_array_equal(kept.boxes[0], boxes[0])
    np.testing.assert_array_equal(kept.boxes[1, 0], [0, 0, 15, 10])


def test_crops_of_proposals_are_larger_than_the_boxes(monkeypatch, nano_localizer):
    """The boxes are a sample of the proposals; crops end at the border of the image."""
    proposed = jnp.array([[[10, 10, 30, 20], [40, 30, 64, 62], [0, 0, 20, 20]]], jnp.float32)
    regions = Regions(boxes=proposed, scores=jnp.zeros((1, 3)), mask=jnp.ones((1, 3), bool))
    monkeypatch.setattr(distill_step, "propose", lambda *arguments: regions)
    settings = DistillObjective(boxes="proposals", boxes_per_image=2)
    crop_of = {
        (10, 10, 30, 20): (5, 7.5, 35, 22.5),
        (40, 30, 64, 62): (34, 22, 64, 64),
        (0, 0, 20, 20): (0, 0, 25, 25),
    }
    localizer = Localizer(nano_localizer[0].architecture)
    images, sizes = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.array([[64, 64]])
    choose = jax.jit(lambda key: choose_boxes(key, images, sizes, settings, localizer, {}))
    seen = set()
    for seed in range(6):
        boxes, crops = choose(jax.random.key(seed))
        assert boxes.mask.all() and boxes.boxes.shape == (1, 2, 4)
        for box, crop in zip(boxes.boxes[0].tolist(), crops[0].tolist(), strict=True):
            assert tuple(crop) == crop_of[tuple(box)]
            seen.add(tuple(box))
    assert len(seen) == 3
