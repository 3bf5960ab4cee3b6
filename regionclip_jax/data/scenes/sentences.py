"""Describe layouts as captions: objects, sometimes their appearance and the background."""

import numpy as np

from regionclip_jax.data.scenes.layout import Layout, SceneObject

_OPENINGS = ("", "", "a photo of ", "a picture with ", "there is ")
_ADJECTIVE_PROBABILITY = 0.1
_BACKGROUND_PROBABILITY = 0.15


def describe(layout: Layout, visible: np.ndarray, rng: np.random.Generator) -> str:
    """Return a caption with every visible object in random order, and sometimes the background."""
    named = [_name(item, rng) for item, seen in zip(layout.objects, visible, strict=True) if seen]
    rng.shuffle(named)
    if len(named) > 1:
        text = ", ".join(named[:-1]) + " and " + named[-1]
    else:
        text = named[0] if named else "nothing"
    if not named or rng.random() < _BACKGROUND_PROBABILITY:
        preposition = "in the" if layout.background in ("night", "fog", "water") else "on"
        text = f"{text} {preposition} {layout.background}"
    return f"{rng.choice(_OPENINGS)}{text}"


def _name(item: SceneObject, rng) -> str:
    adjectives = []
    if item.texture != "plain" and rng.random() < _ADJECTIVE_PROBABILITY:
        adjectives.append(item.texture)
    if rng.random() < _ADJECTIVE_PROBABILITY:
        adjectives.append(item.colour)
    words = " ".join([*adjectives, item.shape])
    return ("an " if words[0] in "aeiou" else "a ") + words
