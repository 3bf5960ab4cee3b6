"""The translator: sections of a recipe into models, optimizers, settings (data: ``streams``)."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, get_args

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.config import (
    AnchorsSection,
    ConfigError,
    DetectorSection,
    EvaluationSection,
    ModelSection,
    OptimizerSection,
    RegionsSection,
    RunSection,
    TrainedModelSection,
)
from regionclip_jax.losses.image_text import ImageTextLoss, image_text_loss
from regionclip_jax.losses.image_text_blockwise import (
    chunked_image_text_loss,
    ring_image_text_loss,
)
from regionclip_jax.models.clip import CLIP, init_variables
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.presets import PRESETS, CLIPConfig
from regionclip_jax.models.rematerialization import KeptActivations
from regionclip_jax.ops.backend import target_backend
from regionclip_jax.sharding.mesh import DATA_AXIS, FSDP_AXIS, make_mesh, require_divisible
from regionclip_jax.steps.detector_step import DetectorSettings
from regionclip_jax.steps.localizer_step import LocalizerSettings
from regionclip_jax.steps.predict_step import (
    DetectSettings,
    FindRegions,
    ProposalSettings,
    given_boxes,
    proposals_of,
    windows,
)
from regionclip_jax.steps.pretrain_step import PretrainSettings
from regionclip_jax.steps.train_state import TrainState, create_train_state
from regionclip_jax.training import schedules
from regionclip_jax.training.initialization import draw_parameters, merge_parameters
from regionclip_jax.training.optimizer import make_optimizer

Tree = TypeVar("Tree")

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_AUTO = "auto"
_PADDINGS = ("invisible", "reference")
_ROI_ALIGNS = ("auto", "matmul", "matmul_rows", "gather")
_OBJECTNESS = ("none", "reference", "sigmoid")
_NMS = ("hard", "gaussian", "linear")
_EMBED_FROM = ("features", "crops")


def choose(table: dict, name: str, key: str):
    """``table[name]``, or an error that lists what there is."""
    _require_one_of(table, name, key)
    return table[name]


def _require_one_of(names: Iterable[str], name: str, key: str) -> None:
    if name not in names:
        raise ConfigError(f"{key}: {name!r} is none of {sorted(names)}")


@contextlib.contextmanager
def blame(key: str) -> Iterator[None]:
    """What refuses its arguments within is a mistake in the recipe at ``key``, not a bug.

    For building things from a section, never around training: there a ValueError is a bug and
    keeps its traceback.

    Raises:
        ConfigError: instead of a ValueError that is not of a class of our own.
    """
    try:
        yield
    except (ConfigError, CheckpointMismatch):
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def resolve_dtype(name: str) -> str:
    """Return "float32" or "bfloat16" for a recipe's ``dtype``.

    "auto" depends on the target of ``ops.backend``, so programs that are compiled ahead for absent
    accelerators get the type that those accelerators would compute in.

    Raises:
        ConfigError: ``name`` is no type of a recipe.
    """
    _require_one_of((_AUTO, *_DTYPES), name, "dtype")
    if name != _AUTO:
        return name
    return "float32" if target_backend() == "cpu" else "bfloat16"


def compute_dtype(name: str) -> jnp.dtype:
    return _DTYPES[resolve_dtype(name)]


def log_dtype(part: str, name: str) -> None:
    """Log the type that a part of a job computes in, and why."""
    logging.info(
        "%s: computing in %s (dtype=%s on %s)", part, resolve_dtype(name), name, target_backend()
    )


def architecture(section: ModelSection) -> CLIPConfig:
    return choose(PRESETS, section.preset, "preset")


def kept_activations(name: str, key: str = "kept_activations") -> KeptActivations:
    _require_one_of(get_args(KeptActivations), name, key)
    return name


def build_model(section: TrainedModelSection, *, frozen_norm: bool) -> CLIP:
    return CLIP(
        architecture(section),
        frozen_norm,
        compute_dtype(section.dtype),
        kept_activations(section.kept_activations),
    )


def build_teacher(section: ModelSection) -> CLIP:
    return CLIP(architecture(section), dtype=compute_dtype(section.dtype))


def initial_variables(section: ModelSection, seed: int) -> dict:
    """Variables a model starts from: those of ``init_from``, or fresh ones.

    Raises:
        CheckpointMismatch: ``init_from`` holds another architecture than ``preset``.
    """
    config = architecture(section)
    if not section.init_from:
        logging.warning("%s: no init_from, starts from random weights", section.preset)
        return draw_parameters(init_variables, config, jax.random.key(seed))
    variables, card = load_model(section.init_from)
    if card.architecture != config:
        raise CheckpointMismatch(
            f"{section.init_from}: holds {card.label}, the recipe wants "
            f"preset {section.preset!r}; choose the recipe of that architecture or another file"
        )
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return merge_parameters(shapes, variables, section.init_from)


def in_type(variables: Tree, dtype: jnp.dtype) -> Tree:
    """Frozen variables with their matrices and kernels in the type they are computed in.

    Nobody updates them, so a copy in another type would be memory for nothing. Vectors, such as the
    statistics of norms, stay as they are.
    """
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, variables)


def for_looking(variables: dict, dtype: jnp.dtype) -> dict:
    """Of a frozen CLIP what looks at pictures, ``in_type``: all but its text tower."""
    return in_type(
        {
            name: {branch: part for branch, part in tree.items() if branch != "text"}
            for name, tree in variables.items()
        },
        dtype,
    )


def build_mesh(batch_size: int, key: str, fsdp: int = 1) -> Mesh:
    """All devices, for batches of this size.

    Args:
        key: of the batch size, for errors.
    """
    with blame("run.fsdp"):
        mesh = make_mesh(fsdp=fsdp)
    with blame(key):
        require_divisible(batch_size, mesh)
    return mesh


def build_schedule(section: OptimizerSection, num_steps: int) -> optax.Schedule:
    makers: dict[str, Callable[[], optax.Schedule]] = {
        "multistep": lambda: schedules.warmup_multistep(
            section.learning_rate,
            boundaries=section.boundaries,
            gamma=section.gamma,
            warmup_steps=section.warmup_steps,
            warmup_factor=section.warmup_factor,
        ),
        "cosine": lambda: schedules.warmup_cosine(
            section.learning_rate, warmup_steps=section.warmup_steps, total_steps=num_steps
        ),
    }
    make = choose(makers, section.schedule, "optimizer.schedule")
    with blame("optimizer"):
        return make()


def build_optimizer(section: OptimizerSection, num_steps: int) -> optax.GradientTransformation:
    schedule = build_schedule(section, num_steps)
    with blame("optimizer"):
        return make_optimizer(
            section.kind,
            schedule,
            weight_decay=section.weight_decay,
            momentum=section.momentum,
            clip_per_tensor_norm=section.clip_per_tensor_norm,
            no_decay_patterns=section.no_decay_patterns,
        )


def build_state(
    section: OptimizerSection, variables: dict, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state at step 0; patterns that match no parameter are refused."""
    with blame("optimizer"):
        return create_train_state(variables, section.frozen_patterns, optimizer)


def build_image_text_loss(chunk: int | None, run: RunSection) -> ImageTextLoss:
    """As ``image_text_loss_on``, on the devices of this run."""
    return image_text_loss_on(build_mesh(run.batch_size, "run.batch_size", run.fsdp), chunk)


def image_text_loss_on(mesh: Mesh, chunk: int | None) -> ImageTextLoss:
    """The whole matrix without a chunk; else blocks, in a ring where devices share the batch."""
    if chunk is None:
        return image_text_loss
    if mesh.size == 1:
        return functools.partial(chunked_image_text_loss, chunk=chunk)
    return functools.partial(
        ring_image_text_loss, chunk=chunk, mesh=mesh, axis=(DATA_AXIS, FSDP_AXIS)
    )


def pretrain_settings(section: RegionsSection, run: RunSection) -> PretrainSettings:
    """The numbers of the objective.

    Raises:
        ConfigError: numbers that exclude each other, or a choice that does not exist.
    """
    _require_one_of(_PADDINGS, section.padding, "regions.padding")
    _require_one_of(_ROI_ALIGNS, section.roi_align, "regions.roi_align")
    if section.num_regions > section.num_proposals:
        raise ConfigError(
            f"regions.num_regions: {section.num_regions} cannot be sampled from "
            f"regions.num_proposals {section.num_proposals}; lower the one or raise the other"
        )
    if run.batch_size % (section.images_per_group or run.batch_size):
        raise ConfigError(
            f"regions.images_per_group: {section.images_per_group} does not divide run.batch_size "
            f"{run.batch_size}; choose a divisor, or None for the whole batch"
        )
    if run.batch_size % section.micro_batches:
        raise ConfigError(
            f"regions.micro_batches: {section.micro_batches} does not divide run.batch_size "
            f"{run.batch_size}; choose a divisor, or 1 for the whole batch at once"
        )
    if section.box_sides is not None and not 0 < section.box_sides[0] <= section.box_sides[1] <= 1:
        raise ConfigError(
            f"regions.box_sides: expected the shortest and the longest side as shares of the "
            f"picture's, above 0 and at most 1, found {section.box_sides}"
        )
    return PretrainSettings(
        num_proposals=section.num_proposals,
        num_regions=section.num_regions,
        pre_nms_topk=section.pre_nms_topk,
        proposal_nms_threshold=section.proposal_nms_threshold,
        box_grid=section.box_grid,
        box_sides=section.box_sides,
        temperature=section.temperature,
        teacher_temperature=section.teacher_temperature,
        concept_threshold=section.concept_threshold,
        images_per_group=section.images_per_group,
        regions_per_softmax=section.regions_per_softmax,
        image_text_weight=section.image_text_weight,
        distillation_weight=section.distillation_weight,
        contrastive_weight=section.contrastive_weight,
        padding=section.padding,
        regions_per_chunk=section.regions_per_chunk,
        roi_align=section.roi_align,
        micro_batches=section.micro_batches,
        seed=run.seed,
    )


def norm_is_frozen(name: str, key: str) -> bool:
    return choose({"frozen": True, "live": False}, name, key)


def localizer_settings(section: AnchorsSection, run: RunSection) -> LocalizerSettings:
    if not 0 <= section.negative_below <= section.positive_from <= 1:
        raise ConfigError(
            f"anchors: negative_below {section.negative_below} and positive_from "
            f"{section.positive_from}: expected 0 <= negative_below <= positive_from <= 1"
        )
    return LocalizerSettings(
        anchors_per_image=section.anchors_per_image,
        positive_fraction=section.positive_fraction,
        negative_below=section.negative_below,
        positive_from=section.positive_from,
        seed=run.seed,
    )


def detector_settings(
    section: DetectorSection, run: RunSection, clip: CLIPConfig, pretrained: bool
) -> DetectorSettings:
    """The numbers of the objective.

    Raises:
        ConfigError: numbers that exclude each other, or that the model cannot have.
    """
    _require_one_of(_ROI_ALIGNS, section.roi_align, "detector.roi_align")
    if not pretrained and section.regions_per_chunk is not None:
        raise ConfigError(
            f"detector.regions_per_chunk: {section.regions_per_chunk} with a random image tower, "
            "whose live norms need all regions at once; set it to None"
        )
    if clip.is_vit and (section.mask_size is not None or not pretrained):
        raise ConfigError(
            "model.preset: a ViT has neither layer4's maps for masks nor batch norms for a random "
            "image tower; choose a ResNet, or detector.mask_size None and image_tower 'pretrained'"
        )
    return DetectorSettings(
        proposals=ProposalSettings(
            section.pre_nms_topk, section.num_proposals, section.proposal_nms_threshold
        ),
        samples_per_image=section.samples_per_image,
        positive_fraction=section.positive_fraction,
        positive_iou=section.positive_iou,
        temperature=section.temperature,
        background_weight=section.background_weight,
        focal_gamma=section.focal_gamma,
        with_masks=section.mask_size is not None,
        regions_per_chunk=section.regions_per_chunk,
        roi_align=section.roi_align,
        seed=run.seed,
    )


def detect_settings(section: EvaluationSection) -> DetectSettings:
    """From embeddings to detections.

    Raises:
        ConfigError: a choice that does not exist, or objectness where nothing has it.
    """
    for names, key in (
        (_OBJECTNESS, "objectness"),
        (_NMS, "nms"),
        (_EMBED_FROM, "embed_from"),
        (_ROI_ALIGNS, "roi_align"),
    ):
        _require_one_of(names, getattr(section, key), f"evaluation.{key}")
    if section.objectness != "none" and section.regions != "localizer":
        raise ConfigError(
            f"evaluation.objectness: {section.objectness!r} with evaluation.regions "
            f"{section.regions!r}, which have no objectness; set it to 'none', or regions to "
            "'localizer'"
        )
    return DetectSettings(
        temperature=section.temperature,
        embed_from=section.embed_from,
        objectness=section.objectness,
        score_threshold=section.score_threshold,
        nms=section.nms,
        nms_threshold=section.nms_threshold,
        soft_nms_sigma=section.soft_nms_sigma,
        soft_nms_prune=section.soft_nms_prune,
        max_detections=section.max_detections,
        regions_per_chunk=section.regions_per_chunk,
        roi_align=section.roi_align,
    )


def build_find_regions(section: EvaluationSection, localizer: Localizer | None) -> FindRegions:
    """Where a model looks; ``localizer`` where the section asks for one."""

    def sliding() -> FindRegions:
        if not section.window_sides or not all(0 < side <= 1 for side in section.window_sides):
            raise ConfigError(
                f"evaluation.window_sides: {section.window_sides}, expected shares of the "
                "picture's side above 0 and at most 1, such as (0.3, 0.5)"
            )
        return windows(section.window_sides)

    proposals = ProposalSettings(
        pre_nms_topk=section.pre_nms_topk,
        post_nms_topk=section.num_proposals,
        nms_threshold=section.proposal_nms_threshold,
    )
    makers: dict[str, Callable[[], FindRegions]] = {
        "ground_truth": lambda: given_boxes,
        "localizer": lambda: proposals_of(localizer, proposals),
        "windows": sliding,
    }
    return choose(makers, section.regions, "evaluation.regions")()
