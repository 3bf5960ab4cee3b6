"""One pretraining step against the reference: labels, embeddings, losses and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.artifacts.model_checkpoint import flatten
from regionclip_jax.conversion.clip_keys import Layout, origin
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.concept_classifier import concept_logits
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.steps.pretrain_step import (
    Frozen,
    PretrainSettings,
    embed_with_student,
    label_with_teacher,
    pretrain_losses,
)
from regionclip_jax.steps.train_state import model_variables, split_parameters
from regionclip_jax.structures import ImageTextBatch, Regions

LOSSES = {
    "image_text": "loss_img_txt_level",
    "distillation": "loss_region_distill",
    "contrastive": "loss_concept_contrastive",
}
# MODEL.BACKBONE.FREEZE_AT 2: the stem and layer1; every norm; and the text tower.
FROZEN = ("^text/", "^logit_scale$", "^visual/stem/", "^visual/layer1/", "norm")


def settings_of(arrays) -> PretrainSettings:
    return PretrainSettings(
        num_proposals=24,
        num_regions=24,
        pre_nms_topk=40,
        proposal_nms_threshold=0.9,
        box_grid=8,
        box_sides=None,
        temperature=float(arrays["matching_temp"]),
        teacher_temperature=float(arrays["teacher_temp"]),
        concept_threshold=float(arrays["concept_thres"]),
        images_per_group=3,
        image_text_weight=1.0,
        distillation_weight=1.0,
        contrastive_weight=1.0,
        padding="reference",
        regions_per_chunk=None,
        micro_batches=1,
        regions_per_softmax=None,
        roi_align="auto",
        seed=0,
    )


def stored_batch(arrays) -> tuple[ImageTextBatch, Regions]:
    _, _, height, width = arrays["padded_shape"]
    pictures = [arrays[f"image{i}_uint8"].transpose(1, 2, 0) for i in range(3)]
    images = np.zeros((3, height, width, 3), np.uint8)
    for canvas, picture in zip(images, pictures, strict=True):
        canvas[: picture.shape[0], : picture.shape[1]] = picture
    batch = ImageTextBatch(
        images=images,
        sizes=np.array([p.shape[:2] for p in pictures], np.int32),
        tokens=arrays["tokens"].astype(np.int32),
        mask=np.ones(3, bool),
    )
    boxes = np.stack([arrays[f"proposals{i}"] for i in range(3)])
    mask = np.ones(boxes.shape[:2], bool)
    regions = Regions(boxes=boxes, scores=np.zeros(mask.shape, np.float32), mask=mask)
    return jax.tree.map(jnp.asarray, (batch, regions))


def to_torch_layout(path: str, gradient) -> tuple[str, np.ndarray]:
    where = origin(path, gradient.ndim)
    if where.layout is Layout.CONVOLUTION:
        gradient = gradient.transpose(3, 2, 0, 1)
    elif where.layout is Layout.LINEAR:
        gradient = gradient.T
    return "backbone." + where.name.removeprefix("visual."), np.asarray(gradient)


def compare(arrays, config, tensors, to_variables, relative_error, gradient_tolerance):
    """Everything that is stored; see the tests for what was measured."""
    tolerance = 1e-4
    settings = settings_of(arrays)
    batch, regions = stored_batch(arrays)
    model = CLIP(config)
    student = to_variables(tensors("student"), config)
    concepts = jnp.asarray(arrays["concept_emb"])
    frozen = Frozen(
        teacher=to_variables(tensors("teacher"), config),
        teacher_concepts=concepts,
        student_concepts=concepts,
    )
    params, frozen_params = split_parameters(student["params"], FROZEN)

    # Everything large is an argument: XLA would fold constants through the frozen layers.
    @jax.jit
    def prepare(student, frozen, batch, regions):
        labels = label_with_teacher(model, frozen, batch.images, batch.sizes, regions, settings)
        return labels, embed_with_student(model, student, batch, regions.boxes, settings)

    labels, embeddings = prepare(student, frozen, batch, regions)
    keep = np.asarray(labels.keep)
    np.testing.assert_array_equal(keep.reshape(-1), arrays["keep_regions"])
    np.testing.assert_array_equal(labels.targets[keep], arrays["target_inds"])
    logits = concept_logits(labels.embeddings[keep], concepts, settings.teacher_temperature)
    probabilities = jax.nn.softmax(logits)
    assert relative_error(probabilities, arrays["teacher_scores_kept"]) < tolerance
    shape = arrays["region_feats"].shape
    assert relative_error(embeddings.regions.reshape(shape), arrays["region_feats"]) < tolerance
    assert relative_error(embeddings.images, arrays["global_feats"]) < tolerance
    assert relative_error(embeddings.texts, arrays["text_embs"]) < tolerance

    # As a run compiles it, whatever flags quick tests are compiled with: in another order of sums a
    # ReLU whose input is zero within rounding may take the other side (3e-4 of layer2's first
    # kernel, seen without optimization).
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def pull(params, frozen_params, batch_stats, frozen, batch, regions, labels, weights):
        def weighted_sum(params):
            variables = model_variables(params, frozen_params, batch_stats)
            embeddings = embed_with_student(model, variables, batch, regions.boxes, settings)
            losses = pretrain_losses(embeddings, batch.mask, labels, frozen, settings)
            return sum(weights[name] * loss for name, loss in losses.items()), losses

        return jax.grad(weighted_sum, has_aux=True)(params)

    def gradients_of(*names):
        weights = {name: jnp.float32(name in names) for name in LOSSES}
        gradients, losses = pull(
            params, frozen_params, student["batch_stats"],
            frozen, batch, regions, labels, weights,
        )  # fmt: skip
        return dict(to_torch_layout(path, g) for path, g in flatten(gradients).items()), losses

    total, losses = gradients_of(*LOSSES)
    for name, stored in LOSSES.items():
        assert relative_error(losses[name], arrays[stored]) < tolerance, name
    stored_total = {k.removeprefix("grad:"): v for k, v in arrays.items() if k.startswith("grad:")}
    for name, expected in stored_total.items():
        found = total[name]
        if found.shape != expected.shape:
            found = found.reshape(-1)[:: found.size // 4096][: expected.size]
        assert relative_error(found, expected) < gradient_tolerance, name
    for prefix, names in {"total": list(LOSSES), **{s: [n] for n, s in LOSSES.items()}}.items():
        gradients, _ = gradients_of(*names)
        stored_names = arrays[f"{prefix}_grad_names"]
        # The frozen ones are exactly those that the reference has no gradient of.
        assert set(stored_names) == set(gradients)
        norms = dict(zip(stored_names, arrays[f"{prefix}_grad_norms"], strict=True))
        # Analytically zero, so nothing but rounding in the reference.
        assert norms.pop("backbone.attnpool.k_proj.bias") < 1e-4
        assert not gradients["backbone.attnpool.k_proj.bias"].any()
        for name, norm in norms.items():
            found = np.linalg.norm(gradients[name])
            assert relative_error(found, norm) < gradient_tolerance / 10, name


@pytest.mark.parity
def test_a_tiny_step_equals_the_references(golden, reference_tensors, to_variables, relative_error):
    """Three pictures of two sizes, their 24 stored proposals each, 120 concepts, a teacher of
    other weights; gradients of each loss and of their sum.

    Measured: embeddings, labels, losses at most 3.8e-6; gradients at most 5.3e-6.
    """
    compare(
        golden("pretrain_tiny"),
        PRESETS["tiny"],
        lambda tower: reference_tensors("tiny_pretrain", tower),
        to_variables,
        relative_error,
        gradient_tolerance=1e-4,
    )


@pytest.mark.slow
@pytest.mark.parity
def test_a_step_of_rn50_equals_the_references(
    large_golden, large_golden_folder, reference_tensors, to_variables, relative_error
):
    """As above with RN50, temperature 0.01, threshold 0.5 and 300 concepts.

    Measured: embeddings, labels, losses at most 2.0e-6; gradients of the attention pool 3.0e-6,
    of layer4 6e-5, of layer3 3e-4, of the first convolution of layer2 7e-3 (its norm 4e-4). The
    tolerance was widened to hold these: ReLUs whose input is zero within rounding, as
    test_float64.py shows. The tiny step has no such growth.
    """
    compare(
        large_golden("pretrain_rn50"),
        PRESETS["RN50"],
        lambda tower: reference_tensors("rn50_pretrain", tower, large_golden_folder),
        to_variables,
        relative_error,
        gradient_tolerance=2e-2,
    )
