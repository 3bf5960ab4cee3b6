"""Description of a training, shared by runs, the compile report and tests of shapes.

Each training job has ``build(settings) -> Training``. Building reads no array and uses no device,
so a program can be traced and compiled without data, weights and devices.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer, load_localizer_card
from regionclip_jax.assembly.models import cast_matrices
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.presets import LOCALIZER_PRESETS
from regionclip_jax.settings import (
    BoxDataSettings,
    CaptionDataSettings,
    EvaluatedImages,
    ImageDataSettings,
    TrainingSettings,
    choose,
)
from regionclip_jax.steps.train_state import TrainState
from regionclip_jax.structures import DetectionBatch, ImageBatch, ImageTextBatch

# (state, frozen, batch) -> (state, metrics). Metrics are scalars or pairs (sum, count). EXAMPLES
# may hold a tree of arrays [B, ...] with a row for each image, which ``Materials.draw`` reads.
Step = Callable[[TrainState, Any, Any], tuple[TrainState, dict]]
EXAMPLES = "examples"


@dataclasses.dataclass(frozen=True)
class Assumed:
    """Assumptions that replace a recipe's files if only shapes are needed."""

    # Name in models.presets of the frozen localizer; None: no localizer.
    localizer: str | None = None
    # Concepts of the pool, or classes of a detector.
    num_names: int = 4764


@dataclasses.dataclass(frozen=True)
class Materials:
    """Opened data and weights of a training.

    Attributes:
        contents: JSON facts about the files of the settings (number of records, hash of the
            teacher); like the settings, they must be the same on resume.
        variables: returns the model's initial variables, unsharded, on the host or one device.
        frozen: working directory -> read-only arguments of the step. Called only for a checked run
            with remaining steps, so a refused run changes nothing.
        batches: global record count -> this process's batches from there on.
        export: writes the model directory from the variables and the source for its card.
        draw: the first rows of a batch, and of the step's examples or more of them, on the host ->
            images by name, for TensorBoard. Called in a thread. None if the step has no examples.
    """

    contents: Mapping
    variables: Callable[[], dict]
    frozen: Callable[[Path], Any]
    batches: Callable[[int], Iterator]
    export: Callable[[Path, dict, dict], None]
    draw: Callable[[Any, Any], Mapping[str, np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """Description of one training.

    Attributes:
        settings: settings of the job.
        dtype: computation type of the trained model.
        make_step: builds the step on a mesh; the caller applies ``jax.jit`` (donating the state,
            not the frozen arguments).
        initial_state: variables -> state at step 0; traced, so that the optimizer's state is
            created sharded.
        abstract_variables: returns the abstract variables of the model.
        abstract_frozen: returns the abstract read-only arguments of the step.
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
        """Return the abstract state."""
        return jax.eval_shape(self.initial_state, self.abstract_variables())

    def abstract_batch(self) -> ImageBatch | ImageTextBatch | DetectionBatch:
        """Return an abstract global batch on the largest canvas of the recipe."""
        data, size = self.settings.data, self.settings.run.batch_size
        canvas = largest_canvas(data)
        images = {
            "images": array(size, *canvas, 3, dtype=jnp.uint8),
            "sizes": array(size, 2, dtype=jnp.int32),
            "mask": array(size, dtype=jnp.bool_),
        }
        if isinstance(data, ImageDataSettings):
            return ImageBatch(**images)
        if isinstance(data, CaptionDataSettings):
            tokens = array(size, data.context_length, dtype=jnp.int32)
            return ImageTextBatch(tokens=tokens, **images)
        detector = getattr(self.settings, "detector", None)
        return abstract_boxes(size, canvas, data.max_boxes, detector and detector.mask_size)


def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def largest_canvas(
    data: CaptionDataSettings | ImageDataSettings | BoxDataSettings | EvaluatedImages,
) -> tuple[int, int]:
    return max(data.canvas_sizes, key=lambda size: size[0] * size[1])


def abstract_boxes(
    size: int, canvas: tuple[int, int], max_boxes: int, mask_size: int | None = None
) -> DetectionBatch:
    """Return an abstract batch of images with boxes."""
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
    """Return the architecture of the frozen localizer; None without localizer.

    Args:
        directory: its model directory, "" for none.
        assumed: if given, the directory is not read.

    Raises:
        CheckpointMismatch: the directory holds no localizer.
        ConfigError: an assumed preset that does not exist.
    """
    if assumed is not None:
        name = assumed.localizer
        return choose(LOCALIZER_PRESETS, name, "localizer") if name else None
    return load_localizer_card(directory).architecture if directory else None


def abstract_frozen_localizer(architecture: LocalizerConfig | None, dtype: jnp.dtype) -> Any:
    """Return the abstract variables of the frozen localizer; None without localizer."""
    if architecture is None:
        return None
    return jax.eval_shape(
        lambda variables: cast_matrices(variables, dtype), abstract_localizer(architecture)
    )
