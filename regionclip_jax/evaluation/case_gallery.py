"""Draw the best, typical and worst images of the last of several models, side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from regionclip_jax.data.loading.decoding import decode_image_of
from regionclip_jax.data.sources.records import Source
from regionclip_jax.evaluation.detection_gallery import best_marks, results_by_image
from regionclip_jax.reporting.galleries import Panel, draw_gallery

# Images of each case: a row of the page.
_IMAGES = 2


def draw(
    source: Source,
    results: Mapping[str, Sequence[dict]],
    *,
    class_names: Mapping[int, str],
    subtitle: str,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the images of ``choose_cases``.

    Args:
        source: readable detection records, all of whose objects have boxes.
        results: model name -> COCO results.
        class_names: by category id.
        subtitle: text below the title.
    """
    cases = choose_cases(source, results, class_names=class_names)
    return draw_gallery(
        [example for examples in cases.values() for example in examples],
        columns=tuple(results),
        title="What is where?",
        subtitle=subtitle,
        rows=tuple(cases),
    )


def choose_cases(
    source: Source, results: Mapping[str, Sequence[dict]], *, class_names: Mapping[int, str]
) -> dict[str, list[list[Panel]]]:
    """Return examples of each case, for each a panel per model.

    A panel has as many detections as the image has objects, the best ones. Images are ordered by
    the share of right ones of the last model, then by the score of these and against that of wrong
    ones.

    Args:
        source, results, class_names: as in ``draw``.
    """
    by_image = [results_by_image(mine) for mine in results.values()]
    panels, order = [], []
    for index in range(len(source)):
        record = source[index]
        count = int((~record.crowd).sum())
        found = [
            best_marks(
                mine.get(record.image_id, []), class_names, record, source.category_names,
                all_annotated=True, count=count,
            )
            for mine in by_image
        ]  # fmt: skip
        panels.append([marks for marks, _ in found])
        marks, scores = found[-1]
        right = np.array([mark.kind == "right" for mark in marks], bool)
        sure = float(np.where(right, 1, -1) @ np.array(scores)) if len(marks) else 0.0
        order.append((right.sum() / max(count, 1), sure, -index))
    ranks = sorted(range(len(order)), key=order.__getitem__, reverse=True)
    middle = max((len(ranks) - _IMAGES) // 2, 0)
    chosen = {
        "best": ranks[:_IMAGES],
        "typical": ranks[middle : middle + _IMAGES],
        "worst": ranks[::-1][:_IMAGES],
    }
    return {
        case: [
            [Panel(decode_image_of(source[index], repr(source)), m) for m in panels[index]]
            for index in indices
        ]
        for case, indices in chosen.items()
    }
