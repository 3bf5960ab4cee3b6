"""Score settings of a model directory: ``scores`` in its ``card.json``.

    {"proposals": {"num_proposals": 20, ...}, "detection": {"temperature": 0.07, "nms": {...}, ...}}

A key that a card lacks has the value of ``softmax_scores``, so cards of older versions, which have
none, stay readable. Keys and meanings are those of ``settings.ScoreSettings``.
"""

import dataclasses
import math
import typing
from typing import Any

from regionclip_jax.artifacts.card_fields import MAX_SIZE, fits
from regionclip_jax.models.clip import logit_scale_and_bias
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.settings import (
    DetectionSettings,
    ProposalSettings,
    ScoreSettings,
    Section,
    completed,
    unstated,
)
from regionclip_jax.settings.fields import AnySection, stated_names
from regionclip_jax.untrusted import short


def default_scores(params: dict, localizer: LocalizerConfig | None) -> ScoreSettings:
    """Return the settings of a converted model.

    The numbers are the reference's for zero-shot detection with the learned temperature. The score
    is the geometric mean of two probabilities: the reference's own product with the raw logit may
    exceed 1 and loses regions with negative logits.

    Args:
        params: of the CLIP.
        localizer: its pre-NMS candidates are 6,000 of a single level, else 1,000 of each level.
    """
    log_scale, bias = logit_scale_and_bias(params)
    temperature = math.exp(-float(log_scale))
    has_bias = bias is not None
    levels = len(localizer.strides) if localizer is not None else None
    return ScoreSettings(
        ProposalSettings(pre_nms_topk=6000 if levels == 1 else 1000),
        DetectionSettings(
            temperature=temperature,
            # A bias belongs to the sigmoid of a pair. In a softmax over classes it would cancel.
            score_activation="sigmoid" if has_bias else "softmax",
            score_bias=float(bias) if has_bias else 0.0,
            objectness="sigmoid",
        ),
    )


def softmax_scores(params: dict, localizer: LocalizerConfig | None) -> ScoreSettings:
    """Return ``default_scores`` with a softmax, also for weights with a bias.

    These are the settings of models that were trained here with a softmax, which neither uses nor
    changes a bias, and of cards of versions without a choice.
    """
    own = default_scores(params, localizer)
    detection = dataclasses.replace(own.detection, score_activation="softmax")
    return dataclasses.replace(own, detection=detection)


def complete_scores(
    stated: ScoreSettings, params: dict, localizer: LocalizerConfig | None
) -> ScoreSettings:
    """Return the settings of a card, completed by ``softmax_scores``."""
    return completed(stated, softmax_scores(params, localizer))


def scores_to_json(section: Section) -> dict:
    """Return the stated keys as JSON values."""
    values = {}
    for name in stated_names(type(section)):
        value = getattr(section, name)
        value = scores_to_json(value) if isinstance(value, Section) else value
        if value not in (None, {}):
            values[name] = value
    return values


def scores_from_json(values: Any, section: type[AnySection], where: str) -> AnySection:
    """Read the stated keys; the others are None.

    Raises:
        ValueError: an unknown key, or a value of another type; the message begins with ``where``.
    """
    hints = typing.get_type_hints(section, include_extras=True)
    known = stated_names(section)
    if not isinstance(values, dict) or not values.keys() <= set(known):
        found = sorted(values) if isinstance(values, dict) else values
        raise ValueError(f"{where}: expected keys among {known}, found {short(found)}")
    changes = {}
    for name, value in values.items():
        kind = hints[name]
        if isinstance(kind, type) and issubclass(kind, Section):
            changes[name] = scores_from_json(value, kind, f"{where}.{name}")
            continue
        large = type(value) is int and value > MAX_SIZE
        if large or not fits(typing.get_args(kind)[0], value):
            raise ValueError(f"{where}.{name}: found {short(value)}, which is none of its values")
        changes[name] = value
    return dataclasses.replace(unstated(section), **changes)
