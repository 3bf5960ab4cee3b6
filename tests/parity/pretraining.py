"""One pretraining step against the reference: labels, embeddings, losses and gradients."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parity.comparison import Comparison, largest_difference, relative_error, rows_that_differ
from parity.golden import (
    GOLDEN,
    Arrays,
    as_stored,
    clip_variables,
    load,
    to_torch_layout,
)
from regionclip_jax.artifacts.model_checkpoint import flatten
from regionclip_jax.losses.concept_alignment import PseudoLabels
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.concept_classifier import concept_logits
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.settings import PretrainObjective, ProposalSettings
from regionclip_jax.steps.pretrain_step import (
    Frozen,
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
# MODEL.BACKBONE.FREEZE_AT 2 freezes the stem, layer1, every norm and the text tower.
FROZEN = ("^text/", "^logit_scale$", "^visual/stem/", "^visual/layer1/", "norm")
# This bias has no effect. Its gradient is zero, and that of the reference is rounding.
_NO_GRADIENT = "backbone.attnpool.k_proj.bias"


class Step(NamedTuple):
    """Inputs of one step, with variables and concept embeddings in float32 or float64."""

    model: CLIP
    settings: PretrainObjective
    student: dict
    frozen: Frozen
    batch: ImageTextBatch
    regions: Regions


def settings_of(arrays: Arrays) -> PretrainObjective:
    """Return the settings of the reference's run."""
    return PretrainObjective(
        proposals=ProposalSettings(num_proposals=24),
        num_regions=24,
        temperature=float(arrays["matching_temp"]),
        teacher_temperature=float(arrays["teacher_temp"]),
        concept_threshold=float(arrays["concept_thres"]),
        images_per_group=3,
        padding="reference",
        regions_per_chunk=None,
    )


def _stored_batch(arrays, dtype) -> tuple[ImageTextBatch, Regions]:
    _, _, height, width = arrays["padded_shape"]
    images = [arrays[f"image{i}_uint8"].transpose(1, 2, 0) for i in range(3)]
    canvases = np.zeros((3, height, width, 3), np.uint8)
    for canvas, image in zip(canvases, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    batch = ImageTextBatch(
        images=canvases,
        sizes=np.array([image.shape[:2] for image in images], np.int32),
        tokens=arrays["tokens"].astype(np.int32),
        mask=np.ones(3, bool),
    )
    boxes = np.stack([arrays[f"proposals{i}"] for i in range(3)])
    mask = np.ones(boxes.shape[:2], bool)
    regions = Regions(boxes.astype(dtype), np.zeros(mask.shape, dtype), mask)
    return jax.tree.map(jnp.asarray, (batch, regions))


def stored_labels(arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """Return the mask of kept regions [3, 24] and their concepts, 0 for the other regions."""
    keep = arrays["keep_regions"].reshape(3, -1)
    targets = np.zeros(keep.shape, np.int32)
    targets[keep] = arrays["target_inds"]
    return jnp.asarray(keep), jnp.asarray(targets)


def step_of(
    preset: str,
    arrays: Arrays,
    arch: str,
    folder: Path = GOLDEN,
    *,
    compute_dtype=jnp.float32,
    dtype=jnp.float32,
) -> Step:
    """Return the inputs of the step whose results are stored in ``arrays``.

    Args:
        compute_dtype: compute dtype of the towers.
        dtype: dtype of variables, boxes and embeddings of concepts.
    """
    config = PRESETS[preset]
    batch, regions = _stored_batch(arrays, dtype)
    concepts = jnp.asarray(arrays["concept_emb"], dtype)
    student, teacher = (
        clip_variables(arch, config, tower, folder, dtype) for tower in ("student", "teacher")
    )
    frozen = Frozen(teacher=teacher, teacher_concepts=concepts, student_concepts=concepts)
    model = CLIP(config, dtype=compute_dtype)
    return Step(model, settings_of(arrays), student, frozen, batch, regions)


def tiny_step(dtype=jnp.float32) -> tuple[Arrays, Step]:
    """Return three images of two sizes, their 24 stored proposals each, and 120 concepts."""
    arrays = load("pretrain_tiny")
    return arrays, step_of("tiny", arrays, "tiny_pretrain", compute_dtype=dtype)


def labels_and_embeddings(step: Step):
    """Return the teacher's labels and the student's embeddings."""

    # Large arrays are arguments, as XLA would fold constants through the frozen layers.
    @jax.jit
    def prepare(student, frozen, batch, regions):
        labels = label_with_teacher(
            step.model, frozen, batch.images, batch.sizes, regions, step.settings
        )
        return labels, embed_with_student(step.model, student, batch, regions.boxes, step.settings)

    return prepare(step.student, step.frozen, step.batch, step.regions)


def gradient_function(step: Step, labels: PseudoLabels):
    """Return a function that maps names of losses to the gradients of their sum and all losses.

    Gradients have the names and the layout of the reference.
    """
    params, frozen_params = split_parameters(step.student["params"], FROZEN)
    # Quick tests compile without optimization, which changes the order of sums. A ReLU with an
    # input near zero may then switch, with an error of 3e-4 in the first kernel of layer2. So this
    # program is compiled as in a run. Accelerators do not have the flag of the quick tests.
    options = {"xla_backend_optimization_level": 3} if jax.default_backend() == "cpu" else None

    @functools.partial(jax.jit, compiler_options=options)
    def pull(params, frozen_params, batch_stats, frozen, batch, regions, labels, weights):
        def weighted_sum(params):
            variables = model_variables(params, frozen_params, batch_stats)
            embeddings = embed_with_student(
                step.model, variables, batch, regions.boxes, step.settings
            )
            losses = pretrain_losses(embeddings, batch.mask, labels, frozen, step.settings)
            return sum(weights[name] * loss for name, loss in losses.items()), losses

        return jax.grad(weighted_sum, has_aux=True)(params)

    def gradients_of(names: Iterable[str]):
        weights = {name: jnp.asarray(float(name in names), jnp.float32) for name in LOSSES}
        gradients, losses = pull(
            params, frozen_params, step.student["batch_stats"],
            step.frozen, step.batch, step.regions, labels, weights,
        )  # fmt: skip
        return dict(to_torch_layout(path, g) for path, g in flatten(gradients).items()), losses

    return gradients_of


def compare_gradients(
    arrays: Arrays, gradients: dict[str, np.ndarray], tolerance: float
) -> list[Comparison]:
    """Compare the stored gradients of the sum of the losses, element by element."""
    return [
        Comparison(f"gradient {name}", relative_error(as_stored(gradients[name], x), x), tolerance)
        for key, x in arrays.items()
        if key.startswith("grad:")
        for name in [key.removeprefix("grad:")]
    ]


def _compare_norms(arrays, prefix, gradients, tolerance) -> list[Comparison]:
    names = arrays[f"{prefix}_grad_names"]
    # The reference has gradients of exactly the parameters that are not frozen.
    assert set(names) == set(gradients), set(names) ^ set(gradients)
    norms = dict(zip(names, arrays[f"{prefix}_grad_norms"], strict=True))
    expected_zero = np.zeros_like(gradients[_NO_GRADIENT])
    comparisons = [
        Comparison(f"reference's {prefix} norm {_NO_GRADIENT}", norms.pop(_NO_GRADIENT), 1e-4),
        Comparison(
            f"{prefix} norm {_NO_GRADIENT}",
            largest_difference(gradients[_NO_GRADIENT], expected_zero),
            0.0,
        ),
    ]
    return comparisons + [
        Comparison(
            f"{prefix} norm {name}",
            relative_error(np.linalg.norm(gradients[name]), norm),
            tolerance,
        )
        for name, norm in norms.items()
    ]


def compare_step(arrays: Arrays, step: Step, gradient_tolerance: float) -> list[Comparison]:
    """Compare all stored arrays of a step.

    Losses and gradients use the labels of the reference, so they are comparable even if the labels
    of the teacher differ.
    """
    tolerance = 1e-4
    labels, embeddings = labels_and_embeddings(step)
    keep, targets = stored_labels(arrays)
    differ = rows_that_differ(labels.keep.reshape(-1), arrays["keep_regions"])
    differ += rows_that_differ(labels.targets[keep], arrays["target_inds"])
    labels = labels.replace(keep=keep, targets=jnp.where(keep, targets, labels.targets))
    logits = concept_logits(
        labels.embeddings[keep], step.frozen.teacher_concepts, step.settings.teacher_temperature
    )
    pairs = {
        "teacher's probabilities": (jax.nn.softmax(logits), arrays["teacher_scores_kept"]),
        "regions": (
            embeddings.regions.reshape(arrays["region_feats"].shape),
            arrays["region_feats"],
        ),
        "images": (embeddings.images, arrays["global_feats"]),
        "texts": (embeddings.texts, arrays["text_embs"]),
    }
    gradients_of = gradient_function(step, labels)
    gradients, losses = gradients_of(LOSSES)
    pairs |= {f"loss {name}": (losses[name], arrays[key]) for name, key in LOSSES.items()}
    comparisons = [Comparison("labels that differ", differ, 0.0)]
    comparisons += [Comparison(k, relative_error(*pair), tolerance) for k, pair in pairs.items()]
    comparisons += compare_gradients(arrays, gradients, gradient_tolerance)
    norm_tolerance = gradient_tolerance / 10
    comparisons += _compare_norms(arrays, "total", gradients, norm_tolerance)
    for name, prefix in LOSSES.items():
        comparisons += _compare_norms(arrays, prefix, gradients_of([name])[0], norm_tolerance)
    return comparisons


def compare_pretraining(dtype=jnp.float32) -> list[Comparison]:
    """Compare the tiny step: labels, embeddings, losses, gradients and their norms."""
    return compare_step(*tiny_step(dtype), gradient_tolerance=1e-4)


def compare_pretraining_of_rn50(folder: Path) -> list[Comparison]:
    """Compare a step of RN50 with temperature 0.01, threshold 0.5 and 300 concepts.

    Gradients pass ReLUs with inputs near zero, where two correct float32 programs may differ, so
    their tolerance is wider.
    """
    arrays = load("pretrain_rn50", folder)
    step = step_of("RN50", arrays, "rn50_pretrain", folder)
    return compare_step(arrays, step, gradient_tolerance=2e-2)
