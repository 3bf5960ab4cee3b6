"""Renaming between RegionCLIP's and open_clip's prefixes and OpenAI's bare names.

Source: docs/reference/checkpoints.md#prefixes. A RegionCLIP file may hold a student
(``backbone.``), a teacher (``teacher_backbone.``), a text tower (``lang_encoder.``) and parts of a
detector. OpenAI's and open_clip's names (``visual.``, bare text or ``text.``) are accepted too.
"""

import re

import numpy as np

TOWERS = {"student": "backbone.", "teacher": "teacher_backbone."}
_TEXT_PREFIXES = ("lang_encoder.", "text.", "")
_TEXT = re.compile(
    r"transformer\.|token_embedding\.|ln_final\.|positional_embedding$|text_projection$|logit_scale$"
)


def strip_common_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drop ``module.`` (distributed wrappers), also twice, if every name begins with it."""
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def has_tower(tensors: dict[str, np.ndarray], tower: str) -> bool:
    return any(name.startswith(TOWERS[tower]) for name in tensors)


def to_openai(
    tensors: dict[str, np.ndarray], tower: str
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Rename the tensors of one image tower and one text tower; never a mixture of two.

    Args:
        tensors: by the file's names, common prefix stripped.
        tower: ``"student"`` or ``"teacher"``; a plain ``visual.`` is the student of a file without
            ``backbone.``.

    Returns:
        Tensors by OpenAI's names, and for each the file's own name. RegionCLIP's own text tower
        (``lang_encoder.``) has precedence.
    """
    plain = tower == "student" and not has_tower(tensors, "student")
    image_prefix = "visual." if plain else TOWERS[tower]
    text_prefix = next((p for p in _TEXT_PREFIXES if f"{p}token_embedding.weight" in tensors), "")
    renamed, names = {}, {}
    for name, tensor in tensors.items():
        text_name = name.removeprefix(text_prefix)
        if name.startswith(image_prefix):
            new_name = "visual." + name.removeprefix(image_prefix)
        elif name.startswith(text_prefix) and _TEXT.match(text_name):
            new_name = text_name
        elif name in ("logit_scale", "logit_bias"):
            # open_clip keeps them outside of either tower.
            new_name = name
        else:
            continue
        renamed[new_name], names[new_name] = tensor, (name,)
    return renamed, names


def from_openai(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename tensors to those of a student with its text tower; the logit scale keeps its name."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("visual."):
            name = TOWERS["student"] + name.removeprefix("visual.")
        elif name != "logit_scale":
            name = f"{_TEXT_PREFIXES[0]}{name}"
        renamed[name] = tensor
    return renamed
