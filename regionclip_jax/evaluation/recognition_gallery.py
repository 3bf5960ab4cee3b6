"""Draw several models' labels of the ground-truth boxes side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from regionclip_jax.data.loading.decoding import decode_image_of
from regionclip_jax.data.sources.records import Source
from regionclip_jax.reporting.drawing import Mark
from regionclip_jax.reporting.galleries import Panel, draw_gallery

_EXAMPLES = 8


def draw(
    source: Source, results: Mapping[str, Sequence[dict]], *, class_names: Sequence[str]
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the examples of ``judge_examples``."""
    return draw_gallery(
        judge_examples(source, results, class_names=class_names),
        columns=tuple(results),
        title="What is in the box?",
        subtitle="zero-shot names of ground-truth boxes on held-out drawn scenes",
    )


def judge_examples(
    source: Source, results: Mapping[str, Sequence[dict]], *, class_names: Sequence[str]
) -> list[list[Panel]]:
    """Return the first images with each model's best label of every box.

    Args:
        source: detection records.
        results: model name -> COCO results on these boxes (category id = class index + 1).
        class_names: by class index.

    Returns:
        For each image a panel per model.
    """
    examples = []
    for index in range(min(_EXAMPLES, len(source))):
        record = source[index]
        image = decode_image_of(record, repr(source))
        panels = []
        for predictions in results.values():
            mine = [result for result in predictions if result["image_id"] == record.image_id]
            marks = [
                _mark(box, int(label), mine, class_names)
                for box, label in zip(record.boxes, record.classes, strict=True)
            ]
            panels.append(Panel(image, tuple(marks)))
        examples.append(panels)
    return examples


def _mark(box, label: int, results: Sequence[dict], class_names: Sequence[str]) -> Mark:
    x1, y1, x2, y2 = (float(v) for v in box)
    wanted = np.array([x1, y1, x2 - x1, y2 - y1])
    same_box = [r for r in results if np.abs(np.array(r["bbox"]) - wanted).max() < 0.05]
    if not same_box:
        return Mark((x1, y1, x2, y2), "?", "wrong")
    best = max(same_box, key=lambda result: result["score"])
    guess = best["category_id"] - 1
    return Mark((x1, y1, x2, y2), class_names[guess], "right" if guess == label else "wrong")
