"""Pictures of what models detect, side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from regionclip_jax.data.images import decode_image
from regionclip_jax.data.records import RecordError, Source
from regionclip_jax.reporting.drawing import Mark
from regionclip_jax.reporting.galleries import Panel, draw_gallery

_EXAMPLES, _BOXES = 8, 5


def draw(
    source: Source,
    results: Mapping[str, Sequence[dict]],
    *,
    class_names: Mapping[int, str],
    subtitle: str,
) -> UInt8[np.ndarray, "H W 3"]:
    """The first readable pictures with each model's best detections, one name a box.

    Args:
        source: of detection records.
        results: model name -> COCO results.
        class_names: by category id.
    """
    by_image = {name: _by_image(found) for name, found in results.items()}
    examples = []
    for index in range(len(source)):
        if len(examples) == _EXAMPLES:
            break
        try:
            record = source[index]
            picture = decode_image(record.image, source=repr(source), key=record.key)
        except RecordError:
            # The evaluation has counted and logged it.
            continue
        examples.append(
            [
                Panel(picture, _marks(found.get(record.image_id, []), class_names))
                for found in by_image.values()
            ]
        )
    return draw_gallery(examples, columns=tuple(results), title="What is where?", subtitle=subtitle)


def _by_image(results: Sequence[dict]) -> dict[int, list[dict]]:
    found: dict[int, list[dict]] = {}
    for result in results:
        found.setdefault(result["image_id"], []).append(result)
    return found


def _marks(results: Sequence[dict], class_names: Mapping[int, str]) -> tuple[Mark, ...]:
    best: dict[tuple, dict] = {}
    for result in sorted(results, key=lambda result: -result["score"]):
        best.setdefault(tuple(result["bbox"]), result)
    marks = []
    for (x, y, width, height), result in list(best.items())[:_BOXES]:
        text = f"{class_names[result['category_id']]} {result['score']:.2f}"
        marks.append(Mark((x, y, x + width, y + height), text))
    return tuple(marks)
