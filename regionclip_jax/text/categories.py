"""Categories: COCO's names and their open-vocabulary split, LVIS from an annotation file.

The split into 48 base and 17 novel categories is that of Bansal et al. (2018), "Zero-Shot Object
Detection", in RegionCLIP's order; the other 15 of the 80 categories are in neither.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

from regionclip_jax.text.prompts import prepare_class_name

# fmt: off
COCO_80: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
    "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
    "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball",
    "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket",
    "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair",
    "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)

COCO_NOVEL_17: tuple[str, ...] = (
    "airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard",
    "skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors",
)

_COCO_NEITHER_15: tuple[str, ...] = (
    "traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball",
    "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog",
    "potted plant", "dining table", "cell phone", "teddy bear", "hair drier",
)
# fmt: on

# All splits keep the order of the 80, which is that of COCO's category ids.
COCO_OVD_65: tuple[str, ...] = tuple(name for name in COCO_80 if name not in _COCO_NEITHER_15)
COCO_BASE_48: tuple[str, ...] = tuple(name for name in COCO_OVD_65 if name not in COCO_NOVEL_17)


LVIS_FREQUENCIES: dict[str, str] = {"r": "rare", "c": "common", "f": "frequent"}


@dataclasses.dataclass(frozen=True)
class LvisCategory:
    """One category of LVIS, with its name as words.

    ``frequency`` is ``"r"``, ``"c"`` or ``"f"``: rare, common, frequent (in at most 10, at most
    100, or more training images).
    """

    id: int
    name: str
    frequency: str


def read_lvis_categories(path: str | os.PathLike) -> tuple[LvisCategory, ...]:
    """Read the categories of an LVIS annotation file, by ascending id, names prepared for prompts.

    The name is the field ``name``, the source of RegionCLIP's prompts
    (docs/reference/text.md#class-names). The first synonym differs for one category.

    Args:
        path: of ``lvis_v1_*.json``, or of a JSON list of its ``categories``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, a category without id, name or frequency (a COCO file), an unknown
            frequency, or an id or prepared name that occurs twice.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected an LVIS annotation file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["categories"] if isinstance(content, dict) else content
        categories = [
            LvisCategory(entry["id"], prepare_class_name(entry["name"]), entry["frequency"])
            for entry in entries
        ]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected LVIS categories with id, name and frequency, found {error!r}: is "
            "this a COCO file? Give the original lvis_v1_train.json or lvis_v1_val.json"
        ) from error
    for category in categories:
        if category.frequency not in LVIS_FREQUENCIES:
            raise ValueError(
                f"{path}: category {category.id}: 'frequency': expected one of "
                f"{tuple(LVIS_FREQUENCIES)}, found {category.frequency!r}"
            )
    for field in ("id", "name"):
        counts = collections.Counter(getattr(category, field) for category in categories)
        if double := [value for value, count in counts.items() if count > 1]:
            raise ValueError(
                f"{path}: {counts[double[0]]} categories have the {field} {double[0]!r}; give each "
                "its own, or text and numbers could not tell them apart"
            )
    return tuple(sorted(categories, key=lambda category: category.id))


def lvis_groups(categories: Sequence[LvisCategory]) -> dict[str, tuple[str, ...]]:
    """Group names by frequency, in the order given: keys "rare", "common" and "frequent".

    The open-vocabulary split of LVIS trains on common and frequent; its novel categories are the
    rare ones (docs/reference/evaluation.md#lvis).
    """
    return {
        group: tuple(category.name for category in categories if category.frequency == letter)
        for letter, group in LVIS_FREQUENCIES.items()
    }
