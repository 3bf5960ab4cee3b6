"""Output files of a run: ``settings.json``, ``results.json`` with numbers, and detections.

``results.json``::

    {"format": 1,
     "teacher": {"AP50_novel": 31.4, ...}, "student": {...},   a model each: percent, or null
     "details": {...}}                                         anything else in JSON

Detections are in COCO's format, a list of ``{"image_id", "category_id", "bbox", "score"}`` with
``bbox`` as ``[x, y, width, height]`` in pixels of the original image; other COCO tools read it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from regionclip_jax.files import replace_text
from regionclip_jax.untrusted import read_large_json, read_model_json, short

FORMAT = 1
_BOX_DIGITS = 2  # of a pixel
_SCORE_DIGITS = 6
_METRIC_DIGITS = 4


def write_results(
    path: str | Path,
    models: Mapping[str, Mapping[str, float | None]],
    *,
    details: Mapping[str, object],
) -> None:
    """Write ``results.json`` atomically.

    Raises:
        ValueError: a value is not a finite number; the message names the model and the metric.
    """
    if reserved := {"format", "details"} & set(models):
        raise ValueError(f"{path}: a model cannot be called {sorted(reserved)}; rename it")
    content = {
        **{
            model: {
                metric: None if value is None else round(float(value), _METRIC_DIGITS)
                for metric, value in metrics.items()
            }
            for model, metrics in models.items()
        },
        "format": FORMAT,
        "details": dict(details),
    }
    _validate_results(content, str(path))
    replace_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_results(path: str | Path) -> dict:
    """Read and check ``results.json``; return its content.

    Raises:
        ValueError: the file does not fit the format; the message names the file and the key.
    """
    content = read_model_json(path)
    _validate_results(content, str(path))
    return content


def write_settings(workdir: str | Path, settings: Mapping[str, object]) -> None:
    """Write ``settings.json``, the resolved recipe of the run in ``workdir``, atomically."""
    text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
    replace_text(Path(workdir) / "settings.json", text)


def write_detections(path: str | Path, detections: Sequence[Mapping]) -> None:
    """Write COCO detections, with their masks if they have any.

    Boxes are rounded to 0.01 pixels and scores to six digits.

    Raises:
        ValueError: a record does not fit the format; the message names the record and the key.
    """
    _validate_detections(detections, str(path))
    rounded = [
        {
            "image_id": int(detection["image_id"]),
            "category_id": int(detection["category_id"]),
            "bbox": [round(float(value), _BOX_DIGITS) for value in detection["bbox"]],
            "score": round(float(detection["score"]), _SCORE_DIGITS),
            **{key: detection[key] for key in ("segmentation",) if key in detection},
        }
        for detection in detections
    ]
    replace_text(path, "[" + ",\n".join(json.dumps(detection) for detection in rounded) + "]\n")


def read_detections(path: str | Path) -> list[dict]:
    """Read and check COCO detections.

    Raises:
        ValueError: a record does not fit the format; the message names file, record and key.
    """
    # As large as the images are many, so without the bound of other files.
    content = read_large_json(path, "write the file again")
    _validate_detections(content, str(path))
    return content


def _validate_results(content: object, where: str) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format", "no such key") if isinstance(content, dict) else content
        raise ValueError(
            f"{where}: 'format': expected {FORMAT}, found {short(found)}; this version reads only "
            "the results that it wrote, evaluate again"
        )
    if not isinstance(content.get("details"), dict):
        raise ValueError(
            f"{where}: 'details': expected an object, found {short(content.get('details'))}"
        )
    for model, metrics in content.items():
        if model in ("format", "details"):
            continue
        if not isinstance(metrics, dict):
            raise ValueError(
                f"{where}: {model!r}: expected an object of metrics, found {short(metrics)}"
            )
        for metric, value in metrics.items():
            if value is not None and not _is_finite_number(value):
                raise ValueError(
                    f"{where}: '{model}.{metric}': expected a finite number or null, "
                    f"found {short(value)}"
                )


def _validate_detections(content: object, where: str) -> None:
    if isinstance(content, str | Mapping) or not isinstance(content, Sequence):
        raise ValueError(f"{where}: expected a list of detections, found {short(content)}")
    checks = {
        "image_id": (_is_integer, "an integer"),
        "category_id": (_is_integer, "an integer"),
        "bbox": (_is_box, "[x, y, width, height] of finite numbers"),
        "score": (_is_finite_number, "a finite number"),
    }
    for number, detection in enumerate(content):
        if not isinstance(detection, Mapping):
            raise ValueError(
                f"{where}: record {number}: expected an object, found {short(detection)}"
            )
        for key, (is_valid, expected) in checks.items():
            if key not in detection or not is_valid(detection[key]):
                found = short(detection[key]) if key in detection else "no such key"
                raise ValueError(
                    f"{where}: record {number}: {key!r}: expected {expected}, found {found}"
                )


def _is_integer(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above the largest float
        return False


def _is_box(value: object) -> bool:
    return (
        hasattr(value, "__len__")
        and not isinstance(value, str)
        and len(value) == 4
        and all(_is_finite_number(number) for number in value)
    )
