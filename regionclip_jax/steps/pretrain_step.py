"""One update of RegionCLIP pretraining.

Source: paper section 3; docs/reference/pretraining.md. Regions of each image -> the frozen teacher
labels them with concepts -> the student learns from the labelled regions (contrastive,
distillation) and from the captions (image-text).

There are two departures from the reference (docs/reference/pretraining.md#global-box). Its released
forward crashes on the global box; here the box is implemented as the region that covers the image.
In the reference the padding affects an image's features, and the global box covers the whole
canvas. Here features and losses are those of the image alone, unless ``padding="reference"``
selects the canvas.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from regionclip_jax.losses.concept_alignment import (
    PseudoLabels,
    confident_regions,
    group_regions,
    likeliest_concepts,
    mean_over_groups,
)
from regionclip_jax.losses.concept_contrastive import concept_contrastive_losses, count_targets
from regionclip_jax.losses.concept_sigmoid import concept_sigmoid_losses, draw_concepts
from regionclip_jax.losses.distillation import distillation_losses
from regionclip_jax.losses.image_text import ImageTextLoss, image_text_loss
from regionclip_jax.models.clip import (
    CLIP,
    encode_regions,
    encode_regions_and_images,
    logit_scale_and_bias,
)
from regionclip_jax.models.concept_classifier import concept_logits
from regionclip_jax.models.localizer import Localizer, propose
from regionclip_jax.ops.chunks import map_chunks
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.ops.sampling import box_mask, random_boxes, sample_regions
from regionclip_jax.settings import PretrainObjective
from regionclip_jax.steps.micro_batches import map_parts, value_and_cached_gradient
from regionclip_jax.steps.train_state import TrainState, apply_gradients, model_variables, step_key
from regionclip_jax.structures import ImageTextBatch, LabelledRegions, Regions


@flax.struct.dataclass
class Frozen:
    """Constant inputs of a step: neither donated nor checkpointed."""

    teacher: Any
    teacher_concepts: Float[Array, "C Dt"]
    student_concepts: Float[Array, "C D"]
    # Variables of the localizer; None if regions are random boxes.
    localizer: Any = None


@flax.struct.dataclass
class StudentEmbeddings:
    """Inputs of the losses from a batch."""

    regions: Float[Array, "B R D"]
    images: Float[Array, "B D"]
    texts: Float[Array, "B D"]
    # Learned temperature and bias of the sigmoid losses, repeated for every image, as micro-batches
    # split rows. None without such a loss.
    temperature: Float[Array, " B"] | None = None
    bias: Float[Array, " B"] | None = None


@flax.struct.dataclass
class SigmoidContrast:
    """Inputs of the sigmoid loss of regions, beside those of its softmax form."""

    key: PRNGKeyArray
    temperature: Float[Array, ""]
    bias: Float[Array, ""]


def find_regions(
    key: PRNGKeyArray,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    settings: PretrainObjective,
    localizer: Localizer | None,
    localizer_variables: Any,
) -> Regions:
    """Sample ``num_regions`` of ``num_proposals`` boxes per image, proposed or random."""
    propose_key, sample_key = jax.random.split(key)
    if localizer is not None:
        proposals = map_parts(
            lambda part: propose(
                localizer,
                localizer_variables,
                *part,
                settings.proposals,
            ),
            (images, sizes),
            settings.micro_batches,
        )
    else:
        boxes = random_boxes(
            propose_key,
            sizes,
            settings.proposals.num_proposals,
            settings.box_grid,
            settings.box_sides,
        )
        mask = box_mask(sizes, settings.proposals.num_proposals)
        proposals = Regions(boxes=boxes, scores=jnp.zeros(mask.shape), mask=mask)
    return sample_regions(sample_key, proposals, settings.num_regions)


def visible_sizes(
    sizes: Int[Array, "B 2"], settings: PretrainObjective
) -> Int[Array, "B 2"] | None:
    """Return the ``sizes`` of the image towers; None means whole canvases, as in the reference."""
    return None if settings.padding == "reference" else sizes


def label_with_teacher(
    teacher: CLIP,
    frozen: Frozen,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    regions: Regions,
    settings: PretrainObjective,
) -> PseudoLabels:
    """Return the teacher's embedding and label of every region, without gradient."""

    def embed(part):
        images, sizes, boxes = part
        visible = visible_sizes(sizes, settings)
        pixels = normalize_images(images, sizes, teacher.config.preprocessing)
        features = teacher.apply(frozen.teacher, pixels, visible, method=teacher.image_features)
        return encode_regions(
            teacher,
            frozen.teacher,
            features,
            boxes,
            regions_per_chunk=settings.regions_per_chunk,
            roi_align_impl=settings.roi_align_impl,
        )

    embeddings = map_parts(embed, (images, sizes, regions.boxes), settings.micro_batches)
    return jax.lax.stop_gradient(name_regions(embeddings, regions.mask, frozen, settings))


def name_regions(
    embeddings: Float[Array, "B R Dt"],
    mask: Bool[Array, "B R"],
    frozen: Frozen,
    settings: PretrainObjective,
) -> PseudoLabels:
    """Label every region with the teacher's likeliest concept, and select the confident ones.

    Memory beyond the embeddings: ``B * regions_per_softmax * C`` probabilities.
    """
    targets, confidence = map_chunks(
        lambda chunk: likeliest_concepts(
            concept_logits(chunk, frozen.teacher_concepts, settings.teacher_temperature)
        ),
        embeddings,
        settings.regions_per_softmax,
    )
    keep = confident_regions(
        group_regions(confidence, settings.images_per_group),
        group_regions(mask, settings.images_per_group),
        settings.concept_threshold,
    ).reshape(mask.shape)
    return PseudoLabels(embeddings, targets, confidence, keep)


def embed_with_student(
    student: CLIP,
    variables: dict,
    batch: ImageTextBatch,
    boxes: Float[Array, "B R 4"],
    settings: PretrainObjective,
) -> StudentEmbeddings:
    """Return the student's embeddings of the regions, the whole images, and the captions.

    With ``padding="reference"`` a whole image is its canvas.
    """
    pixels = normalize_images(batch.images, batch.sizes, student.config.preprocessing)
    visible = visible_sizes(batch.sizes, settings)
    features = student.apply(variables, pixels, visible, method=student.image_features)
    if visible is None:
        visible = jnp.broadcast_to(jnp.array(pixels.shape[1:3]), batch.sizes.shape)
    regions, images = encode_regions_and_images(
        student,
        variables,
        features,
        boxes,
        visible,
        regions_per_chunk=settings.regions_per_chunk,
        roi_align_impl=settings.roi_align_impl,
        differentiated=True,
    )
    # The text tower is frozen in the paper's recipe, so its backward pass is then removed.
    texts = student.apply(variables, batch.tokens, method=student.encode_text)
    embeddings = StudentEmbeddings(regions, images, texts)
    if not settings.has_sigmoid:
        return embeddings
    log_scale, bias = logit_scale_and_bias(variables["params"])
    temperature = jnp.broadcast_to(jnp.exp(-log_scale), batch.mask.shape)
    return embeddings.replace(
        temperature=temperature, bias=jnp.broadcast_to(bias, batch.mask.shape)
    )


def region_losses(
    embeddings: Float[Array, "B R D"],
    labels: PseudoLabels,
    frozen: Frozen,
    settings: PretrainObjective,
    sigmoid: SigmoidContrast | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return distillation and concept contrast, each the mean over kept regions, then over groups.

    The contrast is that of the paper, or with ``sigmoid`` the sum over pairs.

    Memory beyond the embeddings: ``B * regions_per_softmax * C`` logits of student and teacher,
    forward and backward, ``B * C`` counts of labels, and both pools at unit length.
    """
    num_concepts = frozen.student_concepts.shape[0]
    keep = group_regions(labels.keep, settings.images_per_group)
    counts = count_targets(
        group_regions(labels.targets, settings.images_per_group), keep, num_concepts
    )
    compared = counts
    if sigmoid is not None:
        compared = draw_concepts(sigmoid.key, counts, settings.sigmoid_concepts)
    # One row per image, so that chunks of regions work for any size of the groups.
    compared = jnp.repeat(compared, embeddings.shape[0] // counts.shape[0], axis=0)[:, None]

    def contrast(embeddings, logits, targets):
        if sigmoid is None:
            return concept_contrastive_losses(logits, targets, compared)
        cosines = concept_logits(embeddings, frozen.student_concepts, sigmoid.temperature)
        return concept_sigmoid_losses(cosines + sigmoid.bias, targets, compared)

    def of_each(chunk):
        embeddings, teacher_embeddings, targets = chunk
        logits = concept_logits(embeddings, frozen.student_concepts, settings.temperature)
        teacher_logits = concept_logits(
            teacher_embeddings, frozen.teacher_concepts, settings.teacher_temperature
        )
        return (
            distillation_losses(logits, teacher_logits),
            contrast(embeddings, logits, targets),
        )

    chunked = embeddings, labels.embeddings, labels.targets
    distillation, contrastive = (
        mean_over_groups(group_regions(losses, settings.images_per_group), keep)
        for losses in map_chunks(of_each, chunked, settings.regions_per_softmax)
    )
    return distillation, contrastive


def pretrain_losses(
    embeddings: StudentEmbeddings,
    mask: Bool[Array, " B"],
    labels: PseudoLabels,
    frozen: Frozen,
    settings: PretrainObjective,
    image_text: ImageTextLoss = image_text_loss,
    key: PRNGKeyArray | None = None,
) -> dict[str, Float[Array, ""]]:
    """Return the three losses, unweighted, by name.

    Args:
        key: of the concepts that a sigmoid draws; the softmax draws none.
    """
    sigmoid = None
    if settings.region_activation == "sigmoid":
        sigmoid = SigmoidContrast(key, embeddings.temperature[0], embeddings.bias[0])
    distillation, contrastive = region_losses(embeddings.regions, labels, frozen, settings, sigmoid)
    line = settings.temperature, None
    if settings.image_text_activation == "sigmoid":
        line = embeddings.temperature[0], embeddings.bias[0]
    return {
        "image_text": image_text(embeddings.images, embeddings.texts, mask, *line),
        "distillation": distillation,
        "contrastive": contrastive,
    }


def make_pretrain_step(
    student: CLIP,
    teacher: CLIP,
    optimizer: optax.GradientTransformation,
    settings: PretrainObjective,
    *,
    seed: int,
    localizer: Localizer | None = None,
    image_text: ImageTextLoss = image_text_loss,
) -> Callable[[TrainState, Frozen, ImageTextBatch], tuple[TrainState, dict]]:
    """Build the step without the labelled regions; see ``make_labelling_step``."""
    step = make_labelling_step(
        student,
        teacher,
        optimizer,
        settings,
        seed=seed,
        localizer=localizer,
        image_text=image_text,
    )
    return lambda state, frozen, batch: step(state, frozen, batch)[:2]


def make_labelling_step(
    student: CLIP,
    teacher: CLIP,
    optimizer: optax.GradientTransformation,
    settings: PretrainObjective,
    *,
    seed: int,
    localizer: Localizer | None = None,
    image_text: ImageTextLoss = image_text_loss,
) -> Callable[[TrainState, Frozen, ImageTextBatch], tuple[TrainState, dict, LabelledRegions]]:
    """Build the step; the caller applies ``jax.jit`` (state donated, frozen not).

    Args:
        seed: of the regions of every step.
        localizer: proposes regions, with ``frozen.localizer``; None draws random boxes.
        image_text: the form of the image-text loss: plain, or one of
            ``losses.image_text_blockwise``.

    Returns:
        A function of state, frozen inputs and batch that returns the new state, the metrics, and
        the regions with their labels.
    """
    weights = {
        "image_text": settings.image_text_weight,
        "distillation": settings.distillation_weight,
        "contrastive": settings.contrastive_weight,
    }

    def step(
        state: TrainState, frozen: Frozen, batch: ImageTextBatch
    ) -> tuple[TrainState, dict, LabelledRegions]:
        sizes = jnp.where(batch.mask[:, None], batch.sizes, 0)
        key = step_key(seed, state.step)
        regions = find_regions(key, batch.images, sizes, settings, localizer, frozen.localizer)
        labels = label_with_teacher(teacher, frozen, batch.images, sizes, regions, settings)

        def embed(params, part):
            variables = model_variables(params, state.frozen_params, state.batch_stats)
            return embed_with_student(student, variables, *part, settings)

        # The regions have the keys 0 and 1.
        drawn = jax.random.fold_in(key, 2)

        def loss(embeddings):
            losses = pretrain_losses(
                embeddings, batch.mask, labels, frozen, settings, image_text, drawn
            )
            return sum(weights[name] * loss for name, loss in losses.items()), losses

        whole = batch, regions.boxes
        if settings.micro_batches == 1:
            (total, losses), gradients = jax.value_and_grad(
                lambda params: loss(embed(params, whole)), has_aux=True
            )(state.params)
        else:
            (total, losses), gradients = value_and_cached_gradient(
                embed, loss, state.params, whole, settings.micro_batches
            )
        real = jnp.maximum(regions.mask.sum(), 1)
        metrics = {
            "loss": total,
            **{f"loss_{name}": loss for name, loss in losses.items()},
            "gradient_norm": optax.tree.norm(gradients),
            "labels_kept": labels.keep.sum() / real,
            "labels_confidence": jnp.where(regions.mask, labels.confidence, 0.0).sum() / real,
            "skipped_records": (~batch.mask).sum(),
        }
        labelled = LabelledRegions(regions.boxes, labels.targets, labels.confidence, labels.keep)
        return apply_gradients(state, gradients, optimizer), metrics, labelled

    return step
