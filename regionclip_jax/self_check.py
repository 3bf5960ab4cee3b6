"""Self-check of a model directory: scores of one synthetic image, recorded with the weights.

``self_check.json`` lies in a model directory beside the weights::

    {"format": 1, "picture": PNG in base64, "boxes": [[x1, y1, x2, y2], ...], "names": [...],
     "templates": "plain", "cosines": [[one for each name], ... one row a box],
     "scores": [class probabilities, as the cosines], "parameters_sha256": hex}

Files of older versions have no scores. Training and conversion write the file. A damaged model does
not pass, nor one that this machine computes wrongly. The check compares numbers and does not judge
quality, so it works for random weights too.
"""

import base64
import io
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_card
from regionclip_jax.data.scenes.dataset import SceneImages, draw_record
from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.files import replace_text
from regionclip_jax.model import RegionCLIP, load
from regionclip_jax.sharding.barriers import barrier

FILE_NAME = "self_check.json"
FORMAT = 1
# Cosines in fp32 differ by 1e-6 between machines, scores by 1e-4, and both by 0.1 between models.
TOLERANCE = 1e-3
_TEMPLATES = "plain"
_NUM_NAMES = 5
_SCENE = SceneImages(
    stream=0, seed=0, side=192, num_objects=(3, 3), sizes=(0.3, 0.4), overlap=0.1, typicality=1.0,
    clutter=0,
)  # fmt: skip


class Comparison(NamedTuple):
    """Numbers of a model now (``found``) and when it was written (``expected``).

    The rows are boxes, the columns the cosines with C names and then their C scores.
    """

    found: Float[np.ndarray, "R N"]
    expected: Float[np.ndarray, "R N"]

    @property
    def difference(self) -> float:
        """Largest absolute difference; infinite if a number is not finite."""
        if not np.isfinite(self.found).all():
            return float("inf")
        return float(np.abs(self.found - self.expected).max())

    @property
    def passed(self) -> bool:
        return self.difference <= TOLERANCE


def write(directory: str | Path) -> Path:
    """Record the scores of the model of ``directory`` for the synthetic image; return the path.

    With several processes all must call it.
    """
    record = draw_record(_SCENE, 0, with_boxes=True)
    shown = [SHAPES[k] for k in dict.fromkeys(record.classes.tolist())]
    names = (shown + [name for name in SHAPES if name not in shown])[:_NUM_NAMES]
    boxes = record.boxes.tolist()
    model = _load(directory)
    cosines, scores = _numbers(model, record.image, boxes, names)
    content = {
        "format": FORMAT,
        "picture": base64.b64encode(record.image).decode(),
        "boxes": boxes,
        "names": names,
        "templates": _TEMPLATES,
        "cosines": np.round(cosines.astype(float), 6).tolist(),
        "scores": np.round(scores.astype(float), 6).tolist(),
        "parameters_sha256": model.card.parameters_sha256,
    }
    path = Path(directory) / FILE_NAME
    if jax.process_index() == 0:
        replace_text(path, json.dumps(content) + "\n")
    return path


def write_missing(workdir: Path) -> None:
    """Write the self-checks of the models that a run exported, where there is no current one."""
    cards = sorted([*workdir.glob("model/card.json"), *workdir.glob("*/model/card.json")])
    missing = [
        path.parent
        for path in cards
        if _checked_weights(path.with_name(FILE_NAME)) != load_card(path.parent).parameters_sha256
    ]
    # No process may write before all have looked.
    barrier("looked for self-checks")
    for directory in missing:
        write(directory)


def _checked_weights(path: Path) -> str | None:
    """Return the SHA-256 of the weights that a self-check belongs to; None if it is unknown."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("parameters_sha256")
    except (OSError, ValueError, AttributeError):
        return None


def compare(directory: str | Path) -> Comparison:
    """Compute the scores again and compare them with the recorded ones.

    Raises:
        CheckpointMismatch: the self-check is not readable, or the model is not complete.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise CheckpointMismatch(
            f"{path}: expected the scores a model wrote down, found no file; "
            "conversion and training write it, scripts/doctor.py --write makes it anew"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        image = base64.b64decode(content["picture"])
        boxes, names = content["boxes"], content["names"]
        expected = [np.array(content["cosines"], np.float64)]
        if "scores" in content:
            expected.append(np.array(content["scores"], np.float64))
        model = _load(directory)
        found = _numbers(model, image, boxes, names)[: len(expected)]
        comparison = Comparison(np.concatenate(found, 1), np.concatenate(expected, 1))
        _ = comparison.difference  # of arrays of one shape
    except CheckpointMismatch:
        raise
    # A flipped bit may also change the number of values, or the image.
    except (ValueError, KeyError, TypeError, IndexError, SyntaxError, OSError) as error:
        raise CheckpointMismatch(
            f"{path}: expected a self-check of format {FORMAT}, found something else ({error}); "
            "make it anew with scripts/doctor.py --write"
        ) from error
    return comparison


def _load(directory: str | Path) -> RegionCLIP:
    return load(directory, short_side=192, max_long_side=192)


def _numbers(model: RegionCLIP, encoded: bytes, boxes, names) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and scores of boxes and names."""
    with Image.open(io.BytesIO(encoded)) as image, jax.default_matmul_precision("highest"):
        regions = model.encode_regions(image, boxes)
        vocabulary = model.vocabulary(names, templates=_TEMPLATES)
        scores = model.classify(regions, vocabulary)
    texts = vocabulary.embeddings
    regions = regions / np.linalg.norm(regions, axis=1, keepdims=True)
    return regions @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T, scores
