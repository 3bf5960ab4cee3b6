"""Build the prediction step of an evaluation, and its abstract arguments.

Use the abstract arguments (shapes instead of weights, images and names) to compile for absent
devices, or to trace with arrays that exceed the memory.
"""

from collections.abc import Callable
from typing import NamedTuple

from regionclip_jax.artifacts.localizer_checkpoint import abstract_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables
from regionclip_jax.assembly.models import build_find_regions, compute_dtype, with_own_scores
from regionclip_jax.assembly.training import abstract_boxes, array, largest_canvas
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.localizer import Localizer
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.models.vit_pyramid import PyramidHeads
from regionclip_jax.settings import (
    DetectionSettings,
    EvaluationSettings,
    ProposalSettings,
    ScoreSettings,
    choose,
)
from regionclip_jax.steps.predict_step import DetectorVariables, Prediction, make_predict_step
from regionclip_jax.steps.pyramid_predict_step import make_pyramid_predict_step
from regionclip_jax.structures import DetectionBatch


class AbstractPrediction(NamedTuple):
    """Function ``step(variables, batch) -> Prediction`` with its abstract arguments."""

    step: Callable
    variables: DetectorVariables
    batch: DetectionBatch


def build_step(
    settings: EvaluationSettings,
    model: CLIP,
    localizer: Localizer | None,
    heads: PyramidHeads | None = None,
) -> Callable[[DetectorVariables, DetectionBatch], Prediction]:
    """Build the step of an evaluation: ``(variables, batch) -> Prediction``.

    Args:
        localizer: only read if ``settings.regions`` is "localizer".
        heads: those on a pyramid, which propose regions if there is no localizer.
    """
    if heads is not None:
        own = settings.regions == "localizer" and localizer is None
        find = settings.proposals if own else build_find_regions(settings, localizer)
        return make_pyramid_predict_step(model, heads, settings.detection, find)
    find_regions = build_find_regions(settings, localizer)
    return make_predict_step(model, settings.detection, find_regions)


def abstract_prediction(
    settings: EvaluationSettings,
    preset: str,
    dtype: str,
    *,
    localizer: str | None = None,
    num_classes: int = 65,
) -> AbstractPrediction:
    """Build the step of an evaluation with abstract arguments, on its largest canvas.

    No file is read.

    Args:
        settings: regions, classes and images; keys that are None have the defaults of the
            settings, as there is no model directory.
        preset: preset of the CLIP.
        dtype: type of the computation.
        localizer: localizer preset, if ``settings.regions`` needs one.
        num_classes: C.
    """
    architecture = choose(PRESETS, preset, "preset")
    known = localizer and choose(LOCALIZER_PRESETS, localizer, "localizer")
    compute = compute_dtype(dtype)
    settings = with_own_scores(settings, ScoreSettings(ProposalSettings(), DetectionSettings()))
    step = build_step(
        settings, CLIP(architecture, dtype=compute), Localizer(known, compute) if known else None
    )
    variables = DetectorVariables(
        abstract_variables(architecture),
        array(num_classes, architecture.embed_dim),
        abstract_localizer(known) if known else None,
    )
    batch = abstract_boxes(settings.batch_size, largest_canvas(settings), settings.max_boxes)
    return AbstractPrediction(step, variables, batch)
