"""Draw the errors of several models: the costs in AP50, lost objects by size, the worst classes."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from regionclip_jax.evaluation.error_analysis import (
    COSTS,
    DETECTION_KINDS,
    OUTCOMES,
    SIZES,
    Errors,
)
from regionclip_jax.evaluation.error_kinds import KINDS
from regionclip_jax.reporting.bars import Bar, Chart, Colour, Group, draw_charts
from regionclip_jax.reporting.drawing import CLASS_COLOURS

_NUM_CLASSES = 4
_NOTES = {
    "classification": "on an object of another class",
    "localization": "right class, IoU 0.1 to 0.5",
    "both": "another class, IoU 0.1 to 0.5",
    "duplicate": "the object has a better one",
    "background": "IoU below 0.1 with all objects",
    "missed": "objects of no kind above",
    "false positives": "all false detections",
    "false negatives": "all undetected objects",
}
_OUTCOME_COLOURS: dict[str, Colour] = dict(
    zip(OUTCOMES, ((0, 143, 104), (220, 150, 190), (238, 200, 90), (190, 196, 203)), strict=True)
)


def draw(errors: Mapping[str, Errors]) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a bar for each model: of every kind of error, size of objects, and worst class."""
    colours = {
        name: CLASS_COLOURS[number % len(CLASS_COLOURS)] for number, name in enumerate(errors)
    }
    costs = Chart(
        "AP50 lost",
        colours,
        tuple(
            Group(cost, _NOTES[cost], tuple(_cost(e, cost, colours[n]) for n, e in errors.items()))
            for cost in COSTS
        ),
    )
    sizes = Chart("Objects by size", _OUTCOME_COLOURS, _sizes(errors))
    last = list(errors)[-1]
    worst = Chart(f"Classes with the lowest AP50 of {last}", colours, _worst(errors, colours, last))
    ap50 = ", ".join(f"{n} {_number(e.ap50['all'])}" for n, e in errors.items())
    return draw_charts(
        [[costs], [sizes, worst]],
        title="What costs AP50?",
        subtitle=f"AP50: {ap50}. A bar is the AP50 gained if this kind of error were corrected and "
        "no other; they do not add up. Kinds as in TIDE (Bolya et al., 2020).",
    )


def _cost(errors: Errors, cost: str, colour: Colour) -> Bar:
    points = errors.lost["all"][cost]
    numbers = []
    if cost in DETECTION_KINDS:
        numbers.append(_amount(sum(errors.false_detections[cost].values()), "detection"))
    if cost in OUTCOMES:
        numbers.append(_amount(sum(errors.objects[cost].values()), "object"))
    text = "   ".join([_number(points), *([", ".join(numbers)] if numbers else [])])
    return Bar(((points or 0.0, colour),), text)


def _sizes(errors: Mapping[str, Errors]) -> tuple[Group, ...]:
    groups = []
    for size in SIZES:
        bars, total = [], 0
        for name, each in errors.items():
            numbers = {outcome: each.objects[outcome][size] for outcome in OUTCOMES}
            total = sum(numbers.values())
            parts = tuple((n / max(total, 1), _OUTCOME_COLOURS[o]) for o, n in numbers.items())
            share = f" {numbers['detected'] / total:.0%} detected" if total else ""
            bars.append(Bar(parts, name + share))
        groups.append(Group(size, _amount(total, "object"), tuple(bars)))
    return tuple(groups)


def _worst(
    errors: Mapping[str, Errors], colours: Mapping[str, Colour], last: str
) -> tuple[Group, ...]:
    with_objects = {n: e for n, e in errors[last].per_class.items() if e["AP50"] is not None}
    groups = []
    for name in list(with_objects)[:_NUM_CLASSES]:
        bars = []
        for model, each in errors.items():
            ap50, lost = each.per_class[name]["AP50"], each.per_class[name]["lost"]
            most = max(KINDS, key=lambda kind: lost.get(kind, 0.0))
            text = _number(ap50) + (f"   most lost to {most}" if most in lost else "")
            bars.append(Bar(((ap50, colours[model]),), text))
        number = sum(with_objects[name]["objects"].values())
        groups.append(Group(name, _amount(number, "object"), tuple(bars)))
    return tuple(groups)


def _amount(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _number(points: float | None) -> str:
    return "-" if points is None else f"{points:.1f}"
