"""Losses of stored logits, deltas and embeddings of the reference."""

import jax
import jax.numpy as jnp

from parity import finetuning, pretraining
from parity.comparison import Comparison, relative_error
from parity.golden import stored
from regionclip_jax.losses.concept_alignment import PseudoLabels
from regionclip_jax.losses.detector_heads import box_regression_loss, classification_loss
from regionclip_jax.steps.pretrain_step import Frozen, StudentEmbeddings, pretrain_losses


def compare_box_head_losses(variant: str) -> list[Comparison]:
    """Compare the classification and box losses of stored logits and deltas."""
    arrays = stored("finetune_tiny")
    settings = finetuning.settings_of(arrays, variant)
    samples = finetuning.stored_samples(arrays, variant)
    shape = samples.classes.shape

    @jax.jit
    def losses(logits, deltas, samples):
        classification = classification_loss(
            logits,
            samples.classes,
            samples.mask,
            background_weight=settings.background_weight,
            focal_gamma=settings.focal_gamma,
        )
        regression = box_regression_loss(
            deltas, samples.boxes, samples.target_boxes, samples.is_positive, samples.mask
        )
        return {"loss_cls": classification, "loss_box_reg": regression}

    actual = losses(
        jnp.asarray(arrays[f"{variant}_logits"]).reshape(*shape, -1),
        jnp.asarray(arrays[f"{variant}_deltas"]).reshape(*shape, 4),
        samples,
    )
    return [
        Comparison(name, relative_error(loss, arrays[name]), 1e-6)
        for key, loss in actual.items()
        for name in [f"{variant}_{key}"]
    ]


def compare_pretraining_losses() -> list[Comparison]:
    """Compare the losses of stored embeddings and labels.

    The distillation loss is not compared, as the embeddings of the teacher are not stored.
    """
    arrays = stored("pretrain_tiny")
    settings, concepts = pretraining.settings_of(arrays), jnp.asarray(arrays["concept_emb"])
    keep, targets = pretraining.stored_labels(arrays)
    embeddings = StudentEmbeddings(
        regions=jnp.asarray(arrays["region_feats"]).reshape(*keep.shape, -1),
        images=jnp.asarray(arrays["global_feats"]),
        texts=jnp.asarray(arrays["text_embs"]),
    )
    labels = PseudoLabels(embeddings.regions, targets, jnp.ones(keep.shape), keep)
    frozen = Frozen(teacher=None, teacher_concepts=concepts, student_concepts=concepts)

    @jax.jit
    def losses(embeddings, labels, frozen):
        return pretrain_losses(embeddings, jnp.ones(3, bool), labels, frozen, settings)

    actual = losses(embeddings, labels, frozen)
    return [
        Comparison(key, relative_error(actual[name], arrays[key]), 1e-6)
        for name, key in pretraining.LOSSES.items()
        if name != "distillation"
    ]


def compare_losses() -> list[Comparison]:
    """Compare the losses of fine-tuning and pretraining."""
    variants = [one for name in finetuning.VARIANTS for one in compare_box_head_losses(name)]
    return variants + compare_pretraining_losses()
