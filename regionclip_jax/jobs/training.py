"""Description of a training: what the run, the compile report and the tests of shapes take.

Each job that trains has ``build(settings) -> Training``. Building reads no array and touches no
device, so that a program can be traced and compiled where neither data, weights nor devices are.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer, load_localizer_card
from regionclip_jax.jobs import assembly
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.localizer_presets import LOCALIZER_PRESETS
from regionclip_jax.settings import (
    BoxDataSettings,
    CaptionDataSettings,
    EvaluatedImages,
    TrainingSettings,
)
from regionclip_jax.steps.train_state import TrainState
from regionclip_jax.structures import DetectionBatch, ImageTextBatch

# (state, frozen, batch) -> (state, metrics)
Step = Callable[[TrainState, Any, Any], tuple[TrainState, dict]]


@dataclasses.dataclass(frozen=True)
class Assumed:
    """Stands for files of a recipe that need not be there where shapes are enough."""

    # Name in models.localizer_presets of the localizer that proposes; None: there is none.
    localizer: str | None = None
    # Concepts of the pool, or classes of a detector.
    num_names: int = 4764


@dataclasses.dataclass(frozen=True)
class Materials:
    """Data and weights of a training, opened.

    Attributes:
        contents: JSON-able facts about what lies behind the settings' paths (number of records,
            hash of the teacher); like the settings they must be the same on resuming.
        variables: the model's variables before the first step, whole, on the host or one device.
        frozen: what the step only reads, given the working directory. Called when the run is known
            to be the same one and to have steps left, so a refused run changes nothing.
        batches: global record count -> this process's batches from there on.
        export: writes the model directory, given the variables and the source for its card.
    """

    contents: Mapping
    variables: Callable[[], dict]
    frozen: Callable[[Path], Any]
    batches: Callable[[int], Iterator]
    export: Callable[[Path, dict, dict], None]


@dataclasses.dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        settings: of the job.
        dtype: that the trained model computes in.
        make_step: builds the step on a mesh; ``jax.jit`` (state donated, frozen not) is the
            caller's.
        initial_state: variables -> the state at step 0; traced, so that what an optimizer remembers
            comes into being sharded.
        abstract_variables: shapes of the model's variables.
        abstract_frozen: shapes of what the step only reads.
        open: opens data and weights.
    """

    settings: TrainingSettings
    dtype: jnp.dtype
    make_step: Callable[[Mesh], Step]
    initial_state: Callable[[dict], TrainState]
    abstract_variables: Callable[[], dict]
    abstract_frozen: Callable[[], Any]
    open: Callable[[], Materials]

    def abstract_state(self) -> TrainState:
        """Shapes of the state."""
        return jax.eval_shape(self.initial_state, self.abstract_variables())

    def abstract_batch(
        self, canvas: tuple[int, int] | None = None
    ) -> ImageTextBatch | DetectionBatch:
        """Shapes of a global batch.

        Args:
            canvas: (height, width); None is the largest of the recipe.
        """
        data, size = self.settings.data, self.settings.run.batch_size
        canvas = canvas or largest_canvas(data)
        if isinstance(data, CaptionDataSettings):
            return ImageTextBatch(
                images=array(size, *canvas, 3, dtype=jnp.uint8),
                sizes=array(size, 2, dtype=jnp.int32),
                tokens=array(size, data.context_length, dtype=jnp.int32),
                mask=array(size, dtype=jnp.bool_),
            )
        detector = getattr(self.settings, "detector", None)
        return abstract_boxes(size, canvas, data.max_boxes, detector and detector.mask_size)


def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def largest_canvas(
    data: CaptionDataSettings | BoxDataSettings | EvaluatedImages,
) -> tuple[int, int]:
    return max(data.canvas_sizes, key=lambda size: size[0] * size[1])


def abstract_boxes(
    size: int, canvas: tuple[int, int], max_boxes: int, mask_size: int | None = None
) -> DetectionBatch:
    """Shapes of a batch of images with boxes."""
    masks = None
    if mask_size is not None:
        masks = array(size, max_boxes, mask_size, mask_size, dtype=jnp.uint8)
    return DetectionBatch(
        images=array(size, *canvas, 3, dtype=jnp.uint8),
        sizes=array(size, 2, dtype=jnp.int32),
        boxes=array(size, max_boxes, 4),
        classes=array(size, max_boxes, dtype=jnp.int32),
        box_mask=array(size, max_boxes, dtype=jnp.bool_),
        image_ids=array(size, dtype=jnp.int32),
        scales=array(size, 2),
        mask=array(size, dtype=jnp.bool_),
        object_masks=masks,
    )


def localizer_architecture(directory: str, assumed: Assumed | None) -> LocalizerConfig | None:
    """Architecture of the localizer that proposes; None where there is none.

    Args:
        directory: its model directory, "" for none.
        assumed: where given, the directory is not looked at.

    Raises:
        CheckpointMismatch: the directory holds none.
        ConfigError: an assumed preset that does not exist.
    """
    if assumed is not None:
        name = assumed.localizer
        return assembly.choose(LOCALIZER_PRESETS, name, "localizer") if name else None
    return load_localizer_card(directory).architecture if directory else None


def abstract_frozen_localizer(architecture: LocalizerConfig | None, dtype: jnp.dtype) -> Any:
    """Shapes of a localizer that proposes; None where there is none."""
    if architecture is None:
        return None
    return jax.eval_shape(
        lambda variables: assembly.in_type(variables, dtype), abstract_localizer(architecture)
    )
