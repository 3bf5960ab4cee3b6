"""One update of CLIPSelf: a CLIP's dense map learns its own embeddings of crops.

Source: docs/reference/distillation.md; CLIPSelf (Wu et al., ICLR 2024). Boxes of each image -> the
frozen start of the student embeds them as separate images -> the student embeds them by RoIAlign of
its map of the whole image, and learns the teacher's embeddings.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from regionclip_jax.losses.crop_distillation import crop_distillation_loss
from regionclip_jax.models.clip import CLIP, average_unit_cells, encode_letterboxed_crops
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.ops.boxes import box_area, clip_boxes, enlarge_boxes
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.ops.sampling import random_grid_cells, sample_regions
from regionclip_jax.settings import DistillObjective
from regionclip_jax.steps.train_state import TrainState, apply_gradients, model_variables, step_key
from regionclip_jax.structures import ImageBatch, Regions


@flax.struct.dataclass
class FrozenTeacher:
    """Constant inputs of a step: neither donated nor checkpointed."""

    teacher: Any
    # Variables of the localizer; None if boxes are cells of grids.
    localizer: Any = None


def choose_boxes(
    key: PRNGKeyArray,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    settings: DistillObjective,
    localizer: Localizer | None,
    localizer_variables: Any,
) -> tuple[Regions, Float[Array, "B R 4"]]:
    """Return at most ``boxes_per_image`` boxes of images, and the boxes of the teacher's crops."""
    if localizer is None:
        keys = jax.random.split(key, sizes.shape[0])
        boxes = random_grid_cells(keys, sizes, settings.max_split, settings.boxes_per_image)
        return boxes, boxes.boxes
    proposals = propose(localizer, localizer_variables, images, sizes, settings.proposals)
    boxes = keep_sized(sample_regions(key, proposals, settings.boxes_per_image), sizes, settings)
    return boxes, clip_boxes(enlarge_boxes(boxes.boxes, settings.crop_scale), sizes)


def keep_sized(boxes: Regions, sizes: Int[Array, "B 2"], settings: DistillObjective) -> Regions:
    """Mask boxes that are too small or too large; where none is left, unmask a corner.

    The corner is the upper left one of the image, a quarter of its sides.
    """
    smallest, largest = settings.box_sides
    area = box_area(boxes.boxes)
    mask = boxes.mask & (area >= smallest**2) & (area <= largest**2)
    width, height = sizes[:, 1] / 4, sizes[:, 0] / 4
    corner = jnp.stack([jnp.zeros_like(width), jnp.zeros_like(width), width, height], -1)
    lacks = ~mask.any(1)
    first = jnp.where(lacks[:, None], corner, boxes.boxes[:, 0])
    return boxes.replace(
        boxes=boxes.boxes.at[:, 0].set(first),
        mask=mask.at[:, 0].set(mask[:, 0] | (lacks & (sizes > 0).all(1))),
    )


def embed_with_student(
    student: CLIP,
    variables: dict,
    batch: ImageBatch,
    boxes: Float[Array, "B R 4"],
    settings: DistillObjective,
) -> Float[Array, "B R D"]:
    """Return the embeddings of boxes from one dense map of each image."""
    pixels = normalize_images(batch.images, batch.sizes, student.config.preprocessing)
    features = student.apply(variables, pixels, batch.sizes, method=student.image_features)
    return average_unit_cells(
        student, variables, features, boxes, roi_align_impl=settings.roi_align_impl
    )


def make_distill_step(
    student: CLIP,
    teacher: CLIP,
    optimizer: optax.GradientTransformation,
    settings: DistillObjective,
    *,
    seed: int,
    localizer: Localizer | None = None,
) -> Callable[[TrainState, FrozenTeacher, ImageBatch], tuple[TrainState, dict]]:
    """Build the step; the caller applies ``jax.jit`` (state donated, frozen not).

    Args:
        student: its image tower is a ``DenseImageTower``.
        seed: of the boxes of every step.
        localizer: proposes boxes, with ``frozen.localizer``; None draws cells of grids.
    """

    def step(
        state: TrainState, frozen: FrozenTeacher, batch: ImageBatch
    ) -> tuple[TrainState, dict]:
        sizes = jnp.where(batch.mask[:, None], batch.sizes, 0)
        boxes, crops = choose_boxes(
            step_key(seed, state.step),
            batch.images,
            sizes,
            settings,
            localizer,
            frozen.localizer,
        )
        targets = jax.lax.stop_gradient(
            encode_letterboxed_crops(
                teacher,
                frozen.teacher,
                batch.images,
                sizes,
                crops,
                regions_per_chunk=settings.crops_per_chunk,
            )
        )

        def loss_fn(params):
            variables = model_variables(params, state.frozen_params, state.batch_stats)
            embeddings = embed_with_student(
                student, variables, batch.replace(sizes=sizes), boxes.boxes, settings
            )
            return crop_distillation_loss(embeddings, targets, boxes.mask)

        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        metrics = {
            "loss": loss,
            "boxes_per_image": boxes.mask.sum() / jnp.maximum(batch.mask.sum(), 1),
            "gradient_norm": optax.tree.norm(gradients),
            "skipped_records": (~batch.mask).sum(),
        }
        return apply_gradients(state, gradients, optimizer), metrics

    return step
