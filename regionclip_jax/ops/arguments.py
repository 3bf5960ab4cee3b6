"""Settings as arguments of programs.

``jax.jit`` takes ``DetectionSettings``, ``NmsSettings`` and ``ProposalSettings`` as arguments.
Their thresholds and temperatures are then numbers of the program, so other values need no other
program. Counts and choices stay constants.
"""

import dataclasses

import jax
import numpy as np

from regionclip_jax.ops.boxes import exact_threshold
from regionclip_jax.settings import DetectionSettings, NmsSettings, ProposalSettings


def _number(value):
    # Without this, 0 and 0.0 would need two programs. None is not stated.
    return np.float32(value) if isinstance(value, float | int) else value


def _threshold(value):
    return None if value is None else exact_threshold(value)


def _numbers(settings) -> dict:
    """Return the fields that are numbers or sections of them, as arrays in place of floats."""
    if isinstance(settings, ProposalSettings):
        return {"nms_threshold": _threshold(settings.nms_threshold)}
    if isinstance(settings, NmsSettings):
        # The reference rounds the threshold of soft suppression only (ops.soft_nms).
        convert = _threshold if settings.method == "hard" else _number
        return {
            "threshold": convert(settings.threshold),
            "sigma": _number(settings.sigma),
            "prune": _number(settings.prune),
        }
    return {
        "temperature": _number(settings.temperature),
        "score_bias": _number(settings.score_bias),
        "base_fusion": _number(settings.base_fusion),
        "novel_fusion": _number(settings.novel_fusion),
        "score_threshold": _number(settings.score_threshold),
        "nms": settings.nms,
    }


def _register(section: type) -> None:
    def flatten(settings):
        numbers = _numbers(settings)
        constants = tuple(
            (field.name, getattr(settings, field.name))
            for field in dataclasses.fields(settings)
            if field.name not in numbers
        )
        return tuple(numbers.values()), (tuple(numbers), constants)

    def unflatten(auxiliary, children):
        names, constants = auxiliary
        # JAX also puts tracers and markers there, which the checks of the section cannot compare.
        settings = object.__new__(section)
        for name, value in (*zip(names, children, strict=True), *constants):
            object.__setattr__(settings, name, value)
        return settings

    jax.tree_util.register_pytree_node(section, flatten, unflatten)


for _section in (DetectionSettings, NmsSettings, ProposalSettings):
    _register(_section)
