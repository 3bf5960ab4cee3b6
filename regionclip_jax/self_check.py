"""Self-check of a model directory: scores of one synthetic image, recorded with the weights.

``self_check.json`` lies in a model directory beside the weights::

    {"format": 1, "picture": BMP in base64, "boxes": [[x1, y1, x2, y2], ...], "names": [...],
     "templates": "plain", "cosines": [[one for each name], ... one row a box],
     "scores": [class probabilities, as the cosines], "parameters_sha256": hex}

Files of older versions have no scores. Training and conversion write the file. A damaged model does
not pass, nor one that this machine computes wrongly. The check compares numbers and does not judge
quality, so it works for random weights too.
"""

import base64
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from regionclip_jax.artifacts.card_fields import CheckpointMismatch, fits
from regionclip_jax.artifacts.model_checkpoint import load_card
from regionclip_jax.artifacts.model_files import SELF_CHECK_NAME
from regionclip_jax.data.loading.letterbox import check_boxes
from regionclip_jax.data.scenes.dataset import SceneImages, draw_record
from regionclip_jax.data.scenes.vocabulary import SHAPES
from regionclip_jax.data.sources.image_opening import opened_image
from regionclip_jax.files import replace_text
from regionclip_jax.model import RegionCLIP, load
from regionclip_jax.sharding.barriers import barrier
from regionclip_jax.text.names import check_names
from regionclip_jax.untrusted import read_model_json, reason, short

FILE_NAME = SELF_CHECK_NAME
FORMAT = 1
# Cosines in fp32 differ by 1e-6 between machines, scores by 1e-4, and both by 0.1 between models.
TOLERANCE = 1e-3
_TEMPLATES = "plain"
_MAX_SIDE = 1024
_NUMBERS = ("cosines", "scores")
_TYPES = {
    "picture": str,
    "boxes": list[tuple[float, float, float, float]],
    "names": list[str],
    "cosines": list[list[float]],
    "scores": list[list[float]] | None,
    "parameters_sha256": str | None,
}
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
    cosines, scores = _numbers(model, _decode(record.image), boxes, names)
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
        return _read(path).parameters_sha256
    except (OSError, CheckpointMismatch):
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
    record = _read(path)
    found = _numbers(_load(directory), record.image, record.boxes, record.names)
    found = found[: len(record.expected)]
    return Comparison(np.concatenate(found, 1), np.concatenate(record.expected, 1))


class _Record(NamedTuple):
    """Content of a self-check; ``expected`` are cosines and, if it has any, scores."""

    image: UInt8[np.ndarray, "H W 3"]
    boxes: list[list[float]]
    names: list[str]
    expected: list[Float[np.ndarray, "R C"]]
    parameters_sha256: str | None


def _read(path: Path) -> _Record:
    """Read and check a self-check.

    Raises:
        CheckpointMismatch: it is no self-check of this format.
    """
    try:
        content = read_model_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("another format")
        for key, kind in _TYPES.items():
            if not fits(kind, content.get(key)):
                raise ValueError(f"{key}: {short(content.get(key))}")
        shape = (len(content["boxes"]), len(content["names"]))
        expected = [np.array(content[key], np.float64) for key in _NUMBERS if content.get(key)]
        if not expected or any(numbers.shape != shape for numbers in expected):
            raise ValueError(f"numbers of another shape than {shape}")
        image = _decode(base64.b64decode(content["picture"]))
        check_boxes(content["boxes"], image.shape[:2])
        check_names(content["names"], "names")
    # Pillow raises errors of many types for a damaged image.
    except Exception as error:
        raise CheckpointMismatch(
            f"{path}: expected a self-check of format {FORMAT}, found another file "
            f"({reason(error)}); make it anew with scripts/doctor.py --write"
        ) from error
    return _Record(
        image, content["boxes"], content["names"], expected, content.get("parameters_sha256")
    )


def _load(directory: str | Path) -> RegionCLIP:
    return load(directory, short_side=192, max_long_side=192)


def _decode(encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
    with opened_image(encoded) as image:
        if max(image.size) > _MAX_SIDE:
            raise ValueError(f"an image of {image.width} x {image.height} pixels")
        return np.asarray(image.convert("RGB"))


def _numbers(
    model: RegionCLIP, image: UInt8[np.ndarray, "H W 3"], boxes, names
) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and scores of boxes and names."""
    with jax.default_matmul_precision("highest"):
        regions = model.encode_regions(image, boxes)
        vocabulary = model.vocabulary(names, templates=_TEMPLATES)
        scores = model.classify(regions, vocabulary)
    texts = vocabulary.embeddings
    regions = regions / np.linalg.norm(regions, axis=1, keepdims=True)
    return regions @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T, scores
