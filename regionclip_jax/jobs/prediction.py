"""Abstract prediction step of an evaluation: shapes instead of weights, images and names.

Use it to compile for absent devices, or to trace with arrays that exceed the memory. No file is
read, so the caller gives the localizer's preset and the number of classes.
"""

from collections.abc import Callable
from typing import NamedTuple

from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.jobs import assembly
from regionclip_jax.jobs.training import abstract_boxes, array, largest_canvas
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.settings import EvaluationSettings
from regionclip_jax.steps.predict_step import DetectorVariables, make_predict_step
from regionclip_jax.structures import DetectionBatch


class AbstractPrediction(NamedTuple):
    """Function ``step(variables, batch) -> Prediction`` with its abstract arguments."""

    step: Callable
    variables: DetectorVariables
    batch: DetectionBatch


def prediction_step(
    settings: EvaluationSettings,
    preset: str,
    dtype: str,
    *,
    localizer: str | None = None,
    num_classes: int = 65,
    canvas: tuple[int, int] | None = None,
) -> AbstractPrediction:
    """Build the abstract step of an evaluation or another detection.

    Args:
        settings: regions, classes and images.
        preset: preset of the CLIP.
        dtype: type of the computation.
        localizer: localizer preset, if ``settings.regions`` needs one.
        num_classes: C.
        canvas: (height, width); None is the largest of the recipe.
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
        array(num_classes, architecture.embed_dim),
        abstract_localizer(known) if known else None,
    )
    canvas = canvas or largest_canvas(settings)
    batch = abstract_boxes(settings.batch_size, canvas, settings.max_boxes)
    return AbstractPrediction(step, variables, batch)
