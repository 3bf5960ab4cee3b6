"""Draw several models' labels of the ground-truth boxes side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from regionclip_jax.data.images import decode_image
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.reporting.drawing import Mark
from regionclip_jax.reporting.galleries import Panel, draw_gallery

_EXAMPLES = 8


def draw(
    directory: Path, results: Mapping[str, Sequence[dict]], *, class_names: Sequence[str]
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the first held-out images with each model's best label of every box.

    Args:
        directory: directory of detection records.
        results: model name -> COCO results on these boxes (category id = class index + 1).
        class_names: by class index.
    """
    source = ArrayRecordSource(directory)
    examples = []
    for index in range(min(_EXAMPLES, len(source))):
        record = source[index]
        image = decode_image(record.image, source=repr(source), key=record.key)
        panels = []
        for found in results.values():
            mine = [result for result in found if result["image_id"] == record.image_id]
            marks = [
                _mark(box, int(label), mine, class_names)
                for box, label in zip(record.boxes, record.classes, strict=True)
            ]
            panels.append(Panel(image, tuple(marks)))
        examples.append(panels)
    return draw_gallery(
        examples,
        columns=tuple(results),
        title="What is in the box?",
        subtitle="zero-shot names of ground-truth boxes on held-out drawn scenes",
    )


def _mark(box, label: int, results: Sequence[dict], class_names: Sequence[str]) -> Mark:
    x1, y1, x2, y2 = (float(v) for v in box)
    wanted = np.array([x1, y1, x2 - x1, y2 - y1])
    same_box = [r for r in results if np.abs(np.array(r["bbox"]) - wanted).max() < 0.05]
    if not same_box:
        return Mark((x1, y1, x2, y2), "?", "wrong")
    best = max(same_box, key=lambda result: result["score"])
    guess = best["category_id"] - 1
    return Mark((x1, y1, x2, y2), class_names[guess], "right" if guess == label else "wrong")
