"""Detection as one program without this package: weights and settings are constants of it.

Inputs are an image on a square canvas, the size of the image on it, and its scale. Outputs are
boxes, scores and classes. ``describe_detection`` is the content of the JSON file beside a program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

import regionclip_jax
from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.model import RegionCLIP
from regionclip_jax.settings import DetectionSettings
from regionclip_jax.structures import DetectionBatch

FORMAT = 1
# Canvases are multiples of it: the strides of the towers and of the feature pyramid.
_STRIDE = 32


@dataclasses.dataclass(frozen=True)
class Program:
    """Detection of one image.

    Attributes:
        call: (image, size, scale[, embeddings]) -> (boxes, scores, classes).
        inputs: shapes and types by name, in order.
        settings: of the detections.
        vocabulary: baked into the program; None: the last input has the embeddings.
    """

    call: Callable[..., tuple[Array, Array, Array]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    settings: DetectionSettings
    vocabulary: Vocabulary | None


def detection_program(
    model: RegionCLIP,
    vocabulary: Vocabulary | int,
    side: int,
    *,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    num_proposals: int | None = None,
    **computation: Any,
) -> Program:
    """Return the detection of a model as a function of arrays of fixed shapes.

    Rows of the outputs without a detection have the score 0. With embeddings as an input, rows of
    zeros are no classes.

    Args:
        vocabulary: baked into the program; or the number of rows of an input of embeddings.
        side: of the canvas in pixels.
        score_threshold, max_detections, num_proposals: as of ``RegionCLIP.detect``.
        computation: as of ``RegionCLIP.detection_function``.

    Raises:
        CheckpointMismatch: the model has no localizer, or the side is no multiple of 32.
        ValueError: a number below 1, or a negative threshold.
    """
    require_counts(
        num_names=vocabulary if isinstance(vocabulary, int) else None,
        max_boxes=max_detections,
        num_proposals=num_proposals,
    )
    if score_threshold is not None and not score_threshold >= 0:  # other rows have the score 0
        raise ValueError(f"--score: expected 0 or more, found {score_threshold}")
    check_canvas(side)
    step, settings = model.detection_function(
        score_threshold=score_threshold,
        max_detections=max_detections,
        num_proposals=num_proposals,
        **computation,
    )
    width = model.config.embed_dim
    if isinstance(vocabulary, int):
        blank = tuple(f"class {row}" for row in range(vocabulary))
        baked = Vocabulary(blank, np.zeros((vocabulary, width), np.float32), (), {})
    else:
        baked = vocabulary
    variables = model.detector_variables(baked)

    def call(
        image: UInt8[Array, "H W 3"],
        size: Int[Array, "2"],
        scale: Float[Array, "2"],
        embeddings: Float[Array, "C D"] | None = None,
    ) -> tuple[Array, Array, Array]:
        own = variables
        if embeddings is not None:
            own = own.replace(
                class_embeddings=embeddings, class_mask=jnp.any(embeddings != 0, axis=1)
            )
        batch = DetectionBatch(
            images=image[None],
            sizes=size[None],
            boxes=jnp.zeros((1, 0, 4)),
            classes=jnp.zeros((1, 0), jnp.int32),
            box_mask=jnp.zeros((1, 0), bool),
            image_ids=jnp.zeros(1, jnp.int32),
            scales=scale[None],
            mask=jnp.ones(1, bool),
        )
        found = step(own, batch).detections
        return found.boxes[0], found.scores[0], found.classes[0]

    inputs = {
        "image": jax.ShapeDtypeStruct((side, side, 3), jnp.uint8),
        "size": jax.ShapeDtypeStruct((2,), jnp.int32),
        "scale": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
    if isinstance(vocabulary, int):
        inputs["embeddings"] = jax.ShapeDtypeStruct((vocabulary, width), jnp.float32)
        return Program(call, inputs, settings, None)
    return Program(call, inputs, settings, vocabulary)


def require_counts(**counts: int | None) -> None:
    """Refuse a count below 1, by the name of its option.

    Raises:
        ValueError: see above.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"--{name}: expected 1 or more, found {count}")


def check_canvas(side: int) -> None:
    """Refuse a canvas that the towers cannot divide.

    Raises:
        CheckpointMismatch: the side is no multiple of 32 pixels.
    """
    if side < _STRIDE or side % _STRIDE:
        raise CheckpointMismatch(f"--size: expected a multiple of {_STRIDE} pixels, found {side}")


def describe(model: RegionCLIP, vocabulary: Vocabulary | int | None) -> dict[str, Any]:
    """Return the facts of the JSON beside a program that do not depend on its format.

    Args:
        vocabulary: baked into the program; otherwise the embeddings are an input.
    """
    preprocessing = model.config.preprocessing
    baked = isinstance(vocabulary, Vocabulary)
    return {
        "format": FORMAT,
        "package": f"regionclip_jax {regionclip_jax.__version__}",
        "jax": jax.__version__,
        "preprocessing": {
            "resize": "bilinear" if preprocessing.resize.startswith("bilinear") else "bicubic",
            "normalization": "inside the program",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
        "vocabulary": "baked in" if baked else "input",
        "names": list(vocabulary.names) if isinstance(vocabulary, Vocabulary) else None,
        "weights": {"source": model.card.source, "parameters_sha256": model.card.parameters_sha256},
    }


def describe_input(name: str, one: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Return the JSON of an input: name, shape and type."""
    return {"name": name, "shape": list(one.shape), "dtype": str(one.dtype)}


INPUTS = {
    "image": "RGB on a canvas: the image in the top left corner, zeros elsewhere",
    "size": "height and width of the image on the canvas",
    "scale": "canvas pixels per pixel of the original image, vertically and horizontally",
    "embeddings": "text embeddings of the classes, not normalised; a row of zeros is no class",
}
OUTPUTS = {
    "boxes": "x1, y1, x2, y2 in pixels of the original image",
    "scores": "best first; 0 marks a row without a detection",
    "classes": "rows of the names",
}


def describe_detection(model: RegionCLIP, program: Program) -> dict[str, Any]:
    """Return the JSON of a program that detects: how it is called, and what it was made from."""
    return describe(model, program.vocabulary) | {
        "inputs": [
            describe_input(name, one) | {"meaning": INPUTS[name]}
            for name, one in program.inputs.items()
        ],
        "outputs": [{"name": name, "meaning": text} for name, text in OUTPUTS.items()],
        **constants_of(program),
    }


def constants_of(program: Program) -> dict[str, Any]:
    """Return the JSON of the numbers of a detection that are constants of its program."""
    settings = program.settings
    return {
        "score_threshold": settings.score_threshold,
        "max_detections": settings.max_detections,
    }
