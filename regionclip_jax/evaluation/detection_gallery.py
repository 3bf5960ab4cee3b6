"""Draw the detections of several models side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from regionclip_jax.data.loading.decoding import decode_image_of
from regionclip_jax.data.sources.records import DetectionRecord, RecordError, Source
from regionclip_jax.ops.host_boxes import host_pairwise_iou
from regionclip_jax.reporting.drawing import Kind, Mark
from regionclip_jax.reporting.galleries import Panel, draw_gallery

_EXAMPLES, _BOXES, _SAME_PLACE = 8, 5, 0.5


def draw(
    source: Source,
    results: Mapping[str, Sequence[dict]],
    *,
    class_names: Mapping[int, str],
    all_annotated: bool,
    subtitle: str,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the examples of ``judge_examples``; ``subtitle`` is the text below the title."""
    examples = judge_examples(source, results, class_names=class_names, all_annotated=all_annotated)
    return draw_gallery(examples, columns=tuple(results), title="What is where?", subtitle=subtitle)


def judge_examples(
    source: Source,
    results: Mapping[str, Sequence[dict]],
    *,
    class_names: Mapping[int, str],
    all_annotated: bool,
) -> list[list[Panel]]:
    """Return the first readable images with each model's best detections, one name per box.

    As in AP50, a detection is right if it is the first of its class on an object with an IoU of at
    least one half.

    Args:
        source: detection records.
        results: model name -> COCO results.
        class_names: by category id.
        all_annotated: every object of a class has a box, as in COCO but not in LVIS, so unmatched
            detections are wrong.

    Returns:
        For each image a panel per model.
    """
    by_image = {name: results_by_image(mine) for name, mine in results.items()}
    examples = []
    for index in range(len(source)):
        if len(examples) == _EXAMPLES:
            break
        try:
            record = source[index]
            image = decode_image_of(record, repr(source))
        except RecordError:
            # The evaluation has counted and logged this skipped record.
            continue
        panels = []
        for mine in by_image.values():
            marks, _ = best_marks(
                mine.get(record.image_id, []), class_names, record, source.category_names,
                all_annotated=all_annotated, count=_BOXES,
            )  # fmt: skip
            panels.append(Panel(image, marks))
        examples.append(panels)
    return examples


def results_by_image(results: Sequence[dict]) -> dict[int, list[dict]]:
    """Return COCO results by the id of their image."""
    found: dict[int, list[dict]] = {}
    for result in results:
        found.setdefault(result["image_id"], []).append(result)
    return found


class _Truth:
    """Annotated boxes of an image, to judge detections in the order of their scores."""

    def __init__(self, record: DetectionRecord, names: Sequence[str], all_annotated: bool):
        self._boxes, self._crowd = record.boxes, record.crowd
        self._names = np.array([names[index] for index in record.classes], object)
        self._otherwise = "wrong" if all_annotated else "unjudged"

    def judge(self, box: Sequence[float], name: str, found: set[int]) -> Kind:
        """Judge a detection; ``found`` holds the boxes already matched, and gets this match."""
        (ious,) = host_pairwise_iou(np.array([box], np.float64), self._boxes)
        overlaps = np.where(self._names == name, ious, 0.0)
        free = [i for i in range(len(overlaps)) if i not in found and not self._crowd[i]]
        best = max(free, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= _SAME_PLACE:
            found.add(best)
            return "right"
        return "unjudged" if overlaps[self._crowd].any() else self._otherwise


def best_marks(
    results: Sequence[dict],
    class_names: Mapping[int, str],
    record: DetectionRecord,
    names: Sequence[str],
    *,
    all_annotated: bool,
    count: int,
) -> tuple[tuple[Mark, ...], list[float]]:
    """Return the judged best detections of an image, one name per box, and their scores.

    Args:
        results: COCO results of the image.
        class_names: by category id.
        record: the image with its ground truth.
        names: of the record's classes.
        all_annotated: as in ``judge_examples``.
        count: largest number of detections.
    """
    truth = _Truth(record, names, all_annotated)
    best: dict[tuple, dict] = {}
    for result in sorted(results, key=lambda result: -result["score"]):
        best.setdefault(tuple(result["bbox"]), result)
    marks, scores, found = [], [], set()
    for (x, y, width, height), result in list(best.items())[:count]:
        name, box = class_names[result["category_id"]], (x, y, x + width, y + height)
        text = f"{name} {result['score']:.2f}"
        marks.append(Mark(box, text, truth.judge(box, name, found)))
        scores.append(result["score"])
    return tuple(marks), scores
