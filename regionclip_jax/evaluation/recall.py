"""Class-agnostic recall of the localizer's proposals.

Beside AP this separates a bad localizer from bad recognition. The rule is pycocotools' without
categories (``useCats = 0``): at each IoU threshold the proposals are matched in the order of their
rank, each to the unmatched box with the largest overlap. A maximum matching could find a few boxes
more.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from regionclip_jax.ops.host_boxes import host_pairwise_iou

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU; the first gives recall, the mean gives AR
LIMITS = (100, 300, 1000)  # numbers of best proposals that are counted
NEVER = np.iinfo(np.int32).max  # rank of a box that no proposal finds


def found_at(
    boxes: Float[np.ndarray, "G 4"], proposals: Float[np.ndarray, "N 4"]
) -> Int[np.ndarray, "T G"]:
    """Return the rank of the proposal that finds each box of one image, for each IoU threshold.

    Ranks are small enough to gather from all processes; the proposals are not.

    Args:
        boxes: xyxy, without crowd regions, which only match proposals that find no other box.
        proposals: xyxy in the same frame, best first.

    Returns:
        int32, 0 for the best proposal, ``NEVER`` for a box that no proposal finds.

    Raises:
        ValueError: arrays of other shapes, or numbers that are not finite.
    """
    boxes, proposals = np.asarray(boxes, np.float64), np.asarray(proposals, np.float64)
    for name, array in (("boxes", boxes), ("proposals", proposals)):
        if array.ndim != 2 or array.shape[1] != 4:
            raise ValueError(
                f"proposal recall: {name} have shape {array.shape}, expected [count, 4] xyxy; an "
                "image without any has [0, 4]"
            )
        if not np.isfinite(array).all():
            raise ValueError(
                f"proposal recall: {name} hold numbers that are not finite; their maker is broken"
            )
    ranks = np.full((len(THRESHOLDS), len(boxes)), NEVER, np.int32)
    if not len(boxes):
        return ranks
    overlaps = host_pairwise_iou(proposals, boxes)
    every = np.arange(len(THRESHOLDS))
    for rank in np.flatnonzero(overlaps.max(axis=1) >= THRESHOLDS[0]):
        free = np.where(ranks == NEVER, overlaps[rank], -1.0)
        best = len(boxes) - 1 - np.argmax(free[:, ::-1], axis=1)  # the last of equal overlaps
        found = free[every, best] >= THRESHOLDS
        ranks[every[found], best[found]] = rank
    return ranks


def limits_of(num_proposals: int) -> tuple[int, ...]:
    """Return the ``LIMITS`` that so many proposals of an image can reach, and their own number.

    1000 give (100, 300, 1000), 200 give (100, 200), 50 give (50,).
    """
    if num_proposals > LIMITS[-1]:
        return LIMITS
    below = tuple(limit for limit in LIMITS if limit < num_proposals)
    return below + ((num_proposals,) if num_proposals else ())


def summarize_recall(
    ranks: Sequence[Int[np.ndarray, "T _"]], *, limits: Sequence[int] = LIMITS
) -> dict[str, float | None]:
    """Return the recall over all boxes of all images, in percent.

    Args:
        ranks: result of ``found_at`` for each image.
        limits: numbers of best proposals counted for each image.

    Returns:
        ``{"recall@100": ..., "AR@100": ..., ...}``: at IoU 0.5, and the mean over 0.5 to 0.95.
        None without boxes.
    """
    every = np.concatenate([np.asarray(image, np.int32) for image in ranks] or [_NO_BOX], axis=1)
    summary: dict[str, float | None] = {}
    for limit in limits:
        found = every < limit
        summary[f"recall@{limit}"] = 100.0 * float(found[0].mean()) if found.size else None
        summary[f"AR@{limit}"] = 100.0 * float(found.mean()) if found.size else None
    return summary


def proposal_recall(
    boxes: Sequence[Float[np.ndarray, "_ 4"]],
    proposals: Sequence[Float[np.ndarray, "_ 4"]],
    *,
    limits: Sequence[int] = LIMITS,
) -> dict[str, float | None]:
    """Return ``summarize_recall`` of boxes and ranked proposals, one array for each image.

    Raises:
        ValueError: different numbers of images, or as ``found_at``.
    """
    if len(boxes) != len(proposals):
        raise ValueError(
            f"proposal recall: boxes of {len(boxes)} images, proposals of {len(proposals)}; give "
            "both for each image, [0, 4] where there are none"
        )
    ranks = [found_at(*image) for image in zip(boxes, proposals, strict=True)]
    return summarize_recall(ranks, limits=limits)


_NO_BOX = np.empty((len(THRESHOLDS), 0), np.int32)
