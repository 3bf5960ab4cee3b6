"""Draw the detections of an image: boxes in the colours of their classes, and a legend."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from regionclip_jax.reporting.drawing import Mark, add_legend, class_colour, draw_marks, score_text

# Scores above this are drawn unless a user chooses another bound.
DRAWN_SCORE = 0.5
# Letters are unreadable on smaller images, which are enlarged by a whole number.
_LEAST_SIDE = 320


def best_names(boxes: Float[np.ndarray, "K 4"]) -> list[int]:
    """Return the first row of every box, the best of its names, as the reference's visualizer."""
    rows: dict[tuple, int] = {}
    for row, box in enumerate(boxes.tolist()):
        rows.setdefault(tuple(box), row)
    return list(rows.values())


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "K 4"],
    texts: Sequence[tuple[str, float]],
    classes: Sequence[int],
    *,
    legend: bool = True,
    probabilities: bool = True,
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Draw detections; a small image is enlarged, and the legend is a strip below the image.

    Args:
        boxes: xyxy in pixels of the image, best first.
        texts: name and score of each box.
        classes: of each box, rows of the vocabulary; each has its own colour.
        legend: add the names with their numbers of boxes.
        probabilities: show scores as percentages.
    """
    height, width = image.shape[:2]
    marks = [
        Mark(box, f"{name} {score_text(score, probabilities)}", colour=class_colour(row))
        for box, (name, score), row in zip(boxes.tolist(), texts, classes, strict=True)
    ]
    enlarged = width * max(1, -(-_LEAST_SIDE // max(height, width)))
    # The best are drawn last, on top.
    drawn = draw_marks(image, marks[::-1], width=None if enlarged == width else enlarged)
    if not legend or not marks:
        return drawn
    names = {row: name for row, (name, _) in zip(classes, texts, strict=True)}
    counts = {row: list(classes).count(row) for row in names}
    ordered = sorted(names, key=lambda row: (-counts[row], row))
    return add_legend(
        drawn, [(f"{names[row]} ({counts[row]})", class_colour(row)) for row in ordered]
    )
