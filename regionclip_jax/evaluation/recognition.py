"""Recognition metrics on given boxes: accuracy and confusions.

They exclude localization, so they measure region pretraining.
"""

from collections.abc import Mapping, Sequence, Set

import numpy as np
from jaxtyping import Int


def region_top1(
    predicted: Int[np.ndarray, " N"],
    actual: Int[np.ndarray, " N"],
    *,
    class_groups: Mapping[str, Set[int]],
) -> dict[str, float | None]:
    """Return the top-1 accuracy of regions, in percent.

    Args:
        predicted: class index per region.
        actual: true class index per region.
        class_groups: group name -> its true class indices.

    Returns:
        ``{"top1": ..., "top1_<group>": ...}``; None for a group without regions.

    Raises:
        ValueError: the arrays differ in length.
    """
    predicted, actual = _pair(predicted, actual)
    right = predicted == actual
    scores = {"top1": _percent(right)}
    for group, classes in class_groups.items():
        scores[f"top1_{group}"] = _percent(right[np.isin(actual, sorted(classes))])
    return scores


def most_confused(
    predicted: Int[np.ndarray, " N"],
    actual: Int[np.ndarray, " N"],
    *,
    names: Sequence[str],
    limit: int = 10,
) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions ``(true name, predicted name, number of regions)``.

    Ties are in the order of the class indices, so that the list is deterministic.

    Raises:
        ValueError: the arrays differ in length, or hold an index beyond ``names``.
    """
    predicted, actual = _pair(predicted, actual)
    for what, values in (("predicted", predicted), ("true", actual)):
        outside = values[(values < 0) | (values >= len(names))]
        if outside.size:
            raise ValueError(
                f"confusions: {what} class {outside[0]} is not among the {len(names)} named classes"
            )
    wrong = predicted != actual
    pairs, counts = np.unique(
        np.stack([actual[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:limit]
    return [(names[pairs[i, 0]], names[pairs[i, 1]], int(counts[i])) for i in order]


def _pair(predicted, actual) -> tuple[np.ndarray, np.ndarray]:
    predicted, actual = np.asarray(predicted), np.asarray(actual)
    if predicted.shape != actual.shape or predicted.ndim != 1:
        raise ValueError(
            f"recognition: expected one predicted and one true class per region, found shapes "
            f"{predicted.shape} and {actual.shape}"
        )
    return predicted, actual


def _percent(right: np.ndarray) -> float | None:
    return 100.0 * float(right.mean()) if right.size else None
