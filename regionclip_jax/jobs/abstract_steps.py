"""A recipe's step with shapes in place of weights, pictures and words.

To compile it for devices that are not here, or to trace it where its arrays would not fit. Nothing
is read, so what a recipe's paths would tell is asked for: the kind of localizer, the number of
concepts or classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from regionclip_jax.artifacts.detector_heads import HeadsConfig, init_heads
from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.jobs import assembly
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer, LocalizerConfig
from regionclip_jax.models.localizer_presets import LOCALIZER_PRESETS
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.settings import (
    BoxDataSettings,
    CaptionDataSettings,
    EvaluatedImages,
    EvaluationSettings,
    ModelSettings,
    PretrainSettings,
    TrainClipSettings,
    TrainDetectorSettings,
    TrainingSettings,
    TrainLocalizerSettings,
)
from regionclip_jax.sharding.mesh import make_mesh
from regionclip_jax.steps.detector_step import FrozenDetectorParts, make_detector_step
from regionclip_jax.steps.localizer_step import make_localizer_step
from regionclip_jax.steps.predict_step import DetectorVariables, make_predict_step
from regionclip_jax.steps.pretrain_step import Frozen, make_pretrain_step
from regionclip_jax.steps.train_clip_step import make_train_clip_step
from regionclip_jax.steps.train_state import TrainState
from regionclip_jax.structures import DetectionBatch, ImageTextBatch


class AbstractStep(NamedTuple):
    """``step(state, frozen, batch) -> (state, metrics)``, and its arguments as shapes."""

    step: Callable
    state: TrainState
    frozen: Any
    batch: ImageTextBatch | DetectionBatch


class AbstractPrediction(NamedTuple):
    """``step(variables, batch) -> Prediction``, and its arguments as shapes."""

    step: Callable
    variables: DetectorVariables
    batch: DetectionBatch


def training_step(
    settings: TrainingSettings,
    *,
    localizer: str | None = None,
    num_concepts: int = 4764,
    canvas: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
) -> AbstractStep:
    """The step of a recipe that trains.

    Args:
        localizer: name of a localizer preset, that a detector needs; pretraining without one draws
            random boxes. A recipe that trains a localizer names its own.
        num_concepts: C, of the concept pool or of the detector's classes.
        canvas: (height, width); None is the largest of the recipe.
        mesh: devices to split the image-text loss over, where a recipe does; None is one device.

    Raises:
        ConfigError: as ``jobs.assembly``, or a localizer that does not exist.
    """
    optimizer = assembly.build_optimizer(settings.optimizer, settings.run.num_steps)
    known = localizer and assembly.choose(LOCALIZER_PRESETS, localizer, "localizer")
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    if isinstance(settings, TrainClipSettings):
        step, variables, frozen = _train_clip(settings, optimizer, mesh)
    elif isinstance(settings, PretrainSettings):
        step, variables, frozen = _pretrain(settings, optimizer, known, num_concepts, mesh)
    elif isinstance(settings, TrainLocalizerSettings):
        step, variables, frozen = _train_localizer(settings, optimizer)
    else:
        step, variables, frozen = _train_detector(settings, optimizer, known, num_concepts)
    state = jax.eval_shape(
        lambda variables: assembly.build_state(settings.optimizer, variables, optimizer), variables
    )
    mask_size = settings.detector.mask_size if isinstance(settings, TrainDetectorSettings) else None
    canvas = canvas or largest_canvas(settings.data)
    batch = (
        _image_text_batch(settings.run.batch_size, canvas, settings.data.context_length)
        if isinstance(settings.data, CaptionDataSettings)
        else _detection_batch(settings.run.batch_size, canvas, settings.data.max_boxes, mask_size)
    )
    return AbstractStep(step, state, frozen, batch)


def prediction_step(
    settings: EvaluationSettings,
    preset: str,
    dtype: str,
    *,
    localizer: str | None = None,
    num_classes: int = 65,
    canvas: tuple[int, int] | None = None,
) -> AbstractPrediction:
    """The step of an evaluation, or of any detection.

    Args:
        preset: of the CLIP.
        localizer: name of a localizer preset, where ``settings.regions`` asks for one.
        num_classes: C.
        canvas: as of ``training_step``.
    """
    architecture = assembly.choose(PRESETS, preset, "preset")
    known = localizer and assembly.choose(LOCALIZER_PRESETS, localizer, "localizer")
    compute = assembly.compute_dtype(dtype)
    step = make_predict_step(
        CLIP(architecture, dtype=compute),
        settings.detection,
        assembly.build_find_regions(settings, Localizer(known, compute) if known else None),
    )
    variables = DetectorVariables(
        abstract_variables(architecture),
        _array(num_classes, architecture.embed_dim),
        abstract_localizer(known) if known else None,
    )
    canvas = canvas or largest_canvas(settings)
    batch = _detection_batch(settings.batch_size, canvas, settings.max_boxes, mask_size=None)
    return AbstractPrediction(step, variables, batch)


def largest_canvas(
    settings: CaptionDataSettings | BoxDataSettings | EvaluatedImages,
) -> tuple[int, int]:
    return max(settings.canvas_sizes, key=lambda size: size[0] * size[1])


def _train_clip(settings: TrainClipSettings, optimizer, mesh: Mesh):
    model = assembly.build_model(settings.model, frozen_norm=False)
    image_text = assembly.image_text_loss_on(mesh, settings.image_text_chunk)
    step = make_train_clip_step(model, optimizer, image_text)
    return lambda state, frozen, batch: step(state, batch), _model_variables(settings.model), {}


def _pretrain(settings: PretrainSettings, optimizer, localizer, num_concepts: int, mesh: Mesh):
    student = assembly.build_model(settings.student, frozen_norm=True)
    teacher = assembly.build_teacher(settings.teacher)
    frozen = Frozen(
        teacher=jax.eval_shape(
            lambda variables: assembly.for_looking(variables, teacher.dtype),
            _model_variables(settings.teacher),
        ),
        teacher_concepts=_array(num_concepts, teacher.config.embed_dim),
        student_concepts=_array(num_concepts, student.config.embed_dim),
        localizer=_frozen_localizer(localizer, student.dtype) if localizer else None,
    )
    step = make_pretrain_step(
        student,
        teacher,
        optimizer,
        settings.regions,
        seed=settings.run.seed,
        localizer=Localizer(localizer, student.dtype) if localizer else None,
        image_text=assembly.image_text_loss_on(mesh, settings.regions.image_text_chunk),
    )
    return step, _model_variables(settings.student), frozen


def _train_localizer(settings: TrainLocalizerSettings, optimizer):
    trained = settings.localizer
    architecture = assembly.choose(LOCALIZER_PRESETS, trained.preset, "localizer.preset")
    step = make_localizer_step(
        Localizer(
            architecture,
            assembly.compute_dtype(trained.dtype),
            trained.norm == "frozen",
            trained.kept_activations,
        ),
        optimizer,
        settings.anchors,
        seed=settings.run.seed,
    )
    return lambda state, frozen, batch: step(state, batch), abstract_localizer(architecture), {}


def _train_detector(settings: TrainDetectorSettings, optimizer, localizer, num_classes: int):
    detector, clip = settings.detector, assembly.architecture(settings.model)
    assembly.require_detector_fits(detector, clip)
    localizer = localizer or assembly.choose(LOCALIZER_PRESETS, None, "localizer")
    heads = HeadsConfig(clip.embed_dim, detector.mask_size and clip.vision_width * 32)
    variables = _model_variables(settings.model)
    added = jax.eval_shape(lambda: init_heads(heads, jax.random.key(0)))
    variables = {**variables, "params": variables["params"] | added}
    model = assembly.build_model(settings.model, frozen_norm=detector.image_tower == "pretrained")
    step = make_detector_step(
        model,
        Localizer(localizer, model.dtype),
        optimizer,
        detector,
        seed=settings.run.seed,
    )
    frozen = FrozenDetectorParts(
        _frozen_localizer(localizer, model.dtype), _array(num_classes, clip.embed_dim)
    )
    return step, variables, frozen


def _model_variables(model: ModelSettings) -> dict:
    # A shape does not depend on the weights, so their file need not be there.
    model = dataclasses.replace(model, init_from="")
    return jax.eval_shape(lambda: assembly.initial_variables(model, 0))


def _frozen_localizer(architecture: LocalizerConfig, dtype) -> dict:
    return jax.eval_shape(
        lambda variables: assembly.in_type(variables, dtype), abstract_localizer(architecture)
    )


def _array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _image_text_batch(size: int, canvas: tuple[int, int], length: int) -> ImageTextBatch:
    return ImageTextBatch(
        images=_array(size, *canvas, 3, dtype=jnp.uint8),
        sizes=_array(size, 2, dtype=jnp.int32),
        tokens=_array(size, length, dtype=jnp.int32),
        mask=_array(size, dtype=jnp.bool_),
    )


def _detection_batch(
    size: int, canvas: tuple[int, int], max_boxes: int, mask_size: int | None
) -> DetectionBatch:
    masks = None
    if mask_size is not None:
        masks = _array(size, max_boxes, mask_size, mask_size, dtype=jnp.uint8)
    return DetectionBatch(
        images=_array(size, *canvas, 3, dtype=jnp.uint8),
        sizes=_array(size, 2, dtype=jnp.int32),
        boxes=_array(size, max_boxes, 4),
        classes=_array(size, max_boxes, dtype=jnp.int32),
        box_mask=_array(size, max_boxes, dtype=jnp.bool_),
        image_ids=_array(size, dtype=jnp.int32),
        scales=_array(size, 2),
        mask=_array(size, dtype=jnp.bool_),
        object_masks=masks,
    )
