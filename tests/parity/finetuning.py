"""Detector training against the reference: matching, sampling, logits, losses and gradients."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from parity.comparison import Comparison, rows_that_differ
from parity.golden import (
    GOLDEN,
    Arrays,
    as_stored,
    box_predictor,
    clip_variables,
    load,
    stored,
    to_torch_layout,
)
from regionclip_jax.artifacts.model_checkpoint import flatten
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.ops.matching import POSITIVE, match_boxes
from regionclip_jax.settings import DetectorObjective
from regionclip_jax.steps.detector_step import (
    Samples,
    detector_losses,
    label_and_sample,
)
from regionclip_jax.steps.train_state import model_variables, split_parameters
from regionclip_jax.structures import DetectionBatch, Regions

# The two forms of the classification loss.
VARIANTS = ("focal", "plain")
NUM_CLASSES = 48
FROZEN = ("^logit_scale$", "^visual/stem/", "^visual/layer1/", "norm")
# This bias has no effect. Its gradient is zero, and that of the reference is rounding.
_NO_GRADIENT = "backbone.attnpool.k_proj.bias"


def settings_of(arrays: Arrays, variant: str) -> DetectorObjective:
    """Return the settings of the reference's run."""
    flags = json.loads(str(arrays["flags"]))
    return DetectorObjective(
        samples_per_image=flags["BATCH_SIZE_PER_IMAGE"],
        positive_fraction=flags["POSITIVE_FRACTION"],
        positive_iou=flags["IOU_THRESHOLDS"][0],
        temperature=flags["CLSS_TEMP"],
        background_weight=flags["BG_CLS_LOSS_WEIGHT"],
        focal_gamma=flags["FOCAL_SCALED_LOSS"][variant],
        regions_per_chunk=None,
    )


def stored_batch(arrays: Arrays) -> DetectionBatch:
    """Return the two images and their ground truth."""
    images = np.stack([arrays[f"image{i}_uint8"].transpose(1, 2, 0) for i in range(2)])
    boxes = np.stack([arrays[f"gt_boxes{i}"] for i in range(2)])
    batch = DetectionBatch(
        images=images,
        sizes=np.tile(np.array(images.shape[1:3], np.int32), (2, 1)),
        boxes=boxes,
        classes=np.stack([arrays[f"gt_classes{i}"] for i in range(2)]).astype(np.int32),
        box_mask=np.ones(boxes.shape[:2], bool),
        image_ids=np.arange(2, dtype=np.int32),
        scales=np.ones((2, 2), np.float32),
        mask=np.ones(2, bool),
    )
    return jax.tree.map(jnp.asarray, batch)


def stored_samples(arrays: Arrays, variant: str) -> Samples:
    """Return the regions that the reference sampled."""

    def both(name):
        return jnp.asarray(np.stack([arrays[f"{variant}_{name}{i}"] for i in range(2)]))

    classes = both("sampled_gt_classes").astype(jnp.int32)
    return Samples(
        boxes=both("sampled_boxes"),
        classes=classes,
        target_boxes=both("sampled_gt_boxes"),
        matched=jnp.zeros(classes.shape, jnp.int32),
        is_positive=classes < NUM_CLASSES,
        mask=jnp.ones(classes.shape, bool),
    )


def compare_matching(variant: str) -> list[Comparison]:
    """Compare the class of every sampled box, and the targets of positives, bit for bit."""
    arrays = stored("finetune_tiny")
    batch, samples = stored_batch(arrays), stored_samples(arrays, variant)
    comparisons = []
    for row in range(2):
        matched, labels = match_boxes(
            samples.boxes[row], batch.boxes[row], batch.box_mask[row],
            negative_below=0.5, positive_from=0.5,
        )  # fmt: skip
        classes = jnp.where(labels == POSITIVE, batch.classes[row][matched], NUM_CLASSES)
        positive = np.asarray(samples.is_positive[row])
        targets = np.asarray(batch.boxes[row][matched])[positive]
        expected = np.asarray(samples.target_boxes[row])[positive]
        differ = {
            "classes": rows_that_differ(classes, samples.classes[row]),
            "targets": rows_that_differ(targets, expected),
        }
        comparisons += [
            Comparison(f"{variant} matched {name} of image {row} that differ", error, 0.0)
            for name, error in differ.items()
        ]
    return comparisons


def compare_sampling() -> list[Comparison]:
    """Compare the numbers of positives and background and their order; draws differ by design."""
    arrays = stored("finetune_tiny")
    batch, settings = stored_batch(arrays), settings_of(arrays, "focal")
    expected = stored_samples(arrays, "focal")
    comparisons = []
    for row in range(2):
        boxes = jnp.asarray(arrays[f"focal_rpn_boxes{row}"])[None]
        proposals = Regions(boxes, jnp.zeros(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        samples = label_and_sample(jax.random.key(row), proposals, one, NUM_CLASSES, settings)
        background = [
            int((s == NUM_CLASSES).sum()) for s in (samples.classes[0], expected.classes[row])
        ]
        differ = {
            "rows without a sample": int((~samples.mask).sum()),
            "positives": rows_that_differ(samples.is_positive[0], expected.is_positive[row]),
            "background": abs(background[0] - background[1]),
        }
        comparisons += [
            Comparison(f"sampled {name} of image {row} that differ", error, 0.0)
            for name, error in differ.items()
        ]
    return comparisons


def compare_step(
    arrays: Arrays,
    preset: str,
    arch: str,
    folder: Path = GOLDEN,
    *,
    compute_dtype=jnp.float32,
    dtype=jnp.float32,
    deep_tolerance: float = 1e-4,
) -> list[Comparison]:
    """Compare all stored arrays of both variants except the region features.

    For large gradients, the 98th percentile of the errors is compared too.

    Args:
        compute_dtype: compute dtype of the tower.
        dtype: dtype of variables and class embeddings.
        deep_tolerance: tolerance of single elements of gradients deep in the tower. They pass ReLUs
            with inputs near zero, where two correct float32 programs may differ.
    """
    class_embeddings, head = box_predictor(arch, folder, dtype)
    config = PRESETS[preset]
    model = CLIP(config, dtype=compute_dtype)
    variables = clip_variables(arch, config, folder=folder, dtype=dtype)
    trained, frozen = split_parameters(variables["params"] | {"box_head": head}, FROZEN)
    batch, comparisons = stored_batch(arrays), []

    # Large arrays are arguments, as XLA would fold constants through the frozen layers.
    @functools.partial(jax.jit, static_argnames="settings")
    def pull(trained, frozen, batch_stats, class_embeddings, batch, samples, settings):
        def total(trained):
            whole = model_variables(trained, frozen, batch_stats)
            losses, logits, _ = detector_losses(
                model, whole, class_embeddings, batch, samples, settings
            )
            return sum(losses.values()), (losses, logits)

        return jax.grad(total, has_aux=True)(trained)

    def compare(name, actual, expected):
        actual = as_stored(np.asarray(actual, np.float64), expected)
        error = np.abs(actual - expected.reshape(actual.shape)) / np.abs(expected).max()
        deep = "gradient" in name and "backbone.layer" in name
        tolerance = deep_tolerance if deep else 1e-4
        comparisons.append(Comparison(name, float(error.max()), tolerance))
        if error.size > 1000:
            most = float(np.quantile(error, 0.98))
            comparisons.append(Comparison(name.replace("gradient", "98% of"), most, 1e-4))

    for variant in VARIANTS:
        gradients, (losses, logits) = pull(
            trained, frozen, variables["batch_stats"], class_embeddings, batch,
            stored_samples(arrays, variant), settings_of(arrays, variant),
        )  # fmt: skip
        logits = np.asarray(logits).reshape(arrays[f"{variant}_logits"].shape)
        compare(f"{variant} logits", logits, arrays[f"{variant}_logits"])
        for name, key in (("classification", "loss_cls"), ("box_regression", "loss_box_reg")):
            compare(f"{variant} loss {name}", losses[name], arrays[f"{variant}_{key}"])
        actual = dict(to_torch_layout(path, g) for path, g in flatten(gradients).items())
        names = arrays[f"{variant}_total_grad_names"]
        # The reference has gradients of exactly the parameters that are not frozen.
        assert set(names) == set(actual), set(names) ^ set(actual)
        prefix = f"{variant}_grad:"
        with_gradient = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
        assert len(with_gradient) == 3, with_gradient
        for name in with_gradient:
            compare(f"{variant} gradient {name}", actual[name], arrays[prefix + name])
        norms = dict(zip(names, arrays[f"{variant}_total_grad_norms"], strict=True))
        zero = float(norms.pop(_NO_GRADIENT))
        comparisons.append(Comparison(f"reference's {variant} norm {_NO_GRADIENT}", zero, 1e-4))
        for name, norm in norms.items():
            compare(f"{variant} norm {name}", np.linalg.norm(actual[name]), norm)
    return comparisons


def compare_tiny_step(dtype=jnp.float32) -> list[Comparison]:
    """Compare a step of two images with 48 stored samples each."""
    arrays = stored("finetune_tiny")
    return compare_step(arrays, "tiny", "tiny_finetune", compute_dtype=dtype)


def compare_finetuning(dtype=jnp.float32) -> list[Comparison]:
    """Compare the tiny step of both variants, matching and sampling."""
    matching = [comparison for name in VARIANTS for comparison in compare_matching(name)]
    return compare_tiny_step(dtype) + matching + compare_sampling()


def compare_finetuning_of_rn50(
    folder: Path, *, dtype=jnp.float32, deep_tolerance: float = 1e-2
) -> list[Comparison]:
    """Compare a step of RN50 with temperature 0.01, computed in ``dtype`` throughout."""
    return compare_step(
        load("finetune_rn50", folder), "RN50", "rn50_finetune", folder,
        compute_dtype=dtype, dtype=dtype, deep_tolerance=deep_tolerance,
    )  # fmt: skip
