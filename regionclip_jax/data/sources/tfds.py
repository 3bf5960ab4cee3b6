"""Sources for ArrayRecord data sets of TensorFlow Datasets, read without TensorFlow.

The folder of a version holds ``dataset_info.json``; the code that prepared it is not needed.
Images stay encoded.
"""

import os
import pathlib
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from regionclip_jax.data.sources.boxed_images import Boxes, clip_box, stack_boxes
from regionclip_jax.data.sources.image_files import Size, image_size
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord, RecordError

_CAPTIONS = ("caption", "captions", "text", "title")
_OBJECTS = "objects"
# TFDS's name of the box format: ymin, xmin, ymax, xmax as fractions of the image.
_RELATIVE = "REL_YXYX"
# Fractions are at most 1, apart from rounding; far larger values are in pixels.
_LARGEST_SHARE = 1.5


class TfdsCaptionsSource:
    """Images with captions, from the feature ``caption``, ``captions``, ``text`` or ``title``.

    The feature is a text, a sequence of texts, or (as in ``coco_captions``) of dictionaries with
    ``text``.

    Args:
        path: the folder of a version, such as ``.../coco_captions/2014/1.1.0``.
        split: in TFDS's notation: ``"train"``, ``"train[:1%]"``.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not ArrayRecord files, no such split, no image, or no captions.
    """

    def __init__(self, path: str | os.PathLike, split: str):
        self._path, self._split = pathlib.Path(path), split
        features, self._examples = _open(self._path, split)
        self._feature = next((name for name in _CAPTIONS if name in features), None)
        if self._feature is None:
            raise ValueError(
                f"{self._path}: expected a feature of captions ({', '.join(_CAPTIONS)}), found "
                f"{sorted(features)}"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> ImageTextRecord:
        example = _read(self, self._examples, index)
        key = _key(example, index)
        captions = _texts(example[self._feature])
        if captions is None:
            what = f"expected texts in {self._feature}, found {str(example[self._feature])[:60]!r}"
            raise RecordError(repr(self), key, what)
        return ImageTextRecord(key, example["image"], captions)

    def sizes(self) -> None:
        """Return None: the sizes are unknown without opening the images."""
        return None

    def __repr__(self) -> str:
        return f"TfdsCaptionsSource({str(self._path)!r}, {self._split!r})"


class TfdsBoxesSource:
    """Images with boxes, from the feature ``objects``: ``bbox``, ``label``, optional ``is_crowd``.

    TFDS's boxes are fractions of the image, whose size is read from its header.

    Attributes:
        category_names: by class.
        category_ids: by class, from 1.

    Args and Raises: as :class:`TfdsCaptionsSource`. LVIS is refused, because its metrics need its
    own annotation file.
    """

    def __init__(self, path: str | os.PathLike, split: str):
        self._path, self._split = pathlib.Path(path), split
        features, self._examples = _open(self._path, split)
        objects = dict(getattr(features.get(_OBJECTS), "feature", {}).items())
        if "neg_category_ids" in features:
            raise ValueError(
                f"{self._path}: this is LVIS, whose images are labelled with some classes only; "
                "use source 'lvis_folder' with the original annotation file"
            )
        names = getattr(objects["label"], "names", None) if "label" in objects else None
        if "bbox" not in objects or not names:
            raise ValueError(
                f"{self._path}: expected a feature 'objects' with 'bbox' and a 'label' of named "
                f"classes, found {sorted(features)}, in 'objects' {sorted(objects)}"
            )
        box_format = objects["bbox"].bbox_format
        if box_format is not None and box_format.name != _RELATIVE:
            raise ValueError(f"{self._path}: expected boxes as {_RELATIVE}, found {box_format}")
        self.category_names = tuple(names)
        self.category_ids = tuple(range(1, len(names) + 1))

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> DetectionRecord:
        example = _read(self, self._examples, index)
        boxes, size = self._boxes(example, index)
        image_id = example.get("image/id", index)
        return DetectionRecord(
            _key(example, index),
            example["image"],
            boxes.boxes,
            boxes.classes,
            boxes.crowd,
            int(image_id) if isinstance(image_id, int | np.integer) else index,
            size=size,
        )

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes, classes and crowd flags of a record."""
        boxes, _ = self._boxes(_read(self, self._examples, index), index)
        return boxes[:3]

    def sizes(self) -> None:
        """Return None: the sizes are unknown without opening the images."""
        return None

    def __repr__(self) -> str:
        return f"TfdsBoxesSource({str(self._path)!r}, {self._split!r})"

    def _boxes(self, example: dict, index: int) -> tuple[Boxes, Size]:
        objects, key = example[_OBJECTS], _key(example, index)
        size = image_size(example["image"])
        if size is None:
            raise RecordError(repr(self), key, "the image's header cannot be read")
        labels = np.array(objects["label"], np.int64)
        shares = np.array(objects["bbox"], np.float64).reshape(-1, 4)
        crowd = objects.get("is_crowd", [False] * len(labels))
        if (
            not (np.abs(shares) <= _LARGEST_SHARE).all()
            or not (labels < len(self.category_names)).all()
        ):
            raise RecordError(
                repr(self),
                key,
                "expected boxes in fractions of the image and known labels, found "
                f"{shares.tolist()}, {labels}",
            )
        rows = []
        for (y1, x1, y2, x2), label, is_crowd in zip(shares, labels, crowd, strict=True):
            corners = (x1 * size[1], y1 * size[0], x2 * size[1], y2 * size[0])
            # TFDS writes -1 for a class that was not labelled.
            if label >= 0 and (box := clip_box(corners, *size)) is not None:
                rows.append((box, int(label), bool(is_crowd), None))
        return stack_boxes(rows), size


def _open(path: pathlib.Path, split: str):
    """Return the features by name, and random access to the examples."""
    import tensorflow_datasets as tfds

    if not (path / "dataset_info.json").is_file():
        found = sorted(str(p.parent.relative_to(path)) for p in path.glob("**/dataset_info.json"))
        raise FileNotFoundError(
            f"{path} has no dataset_info.json: expected the folder of a version that TFDS prepared"
            + (f", such as {found[:3]} in it" if found else ", such as coco/2017/1.1.0")
        )
    builder = tfds.builder_from_directory(path)
    # TFDS declares neither the mapping nor as_data_source's arguments.
    features = dict(cast(Any, builder.info.features).items())
    if not isinstance(features.get("image"), tfds.features.Image):
        raise ValueError(f"{path}: expected an image as feature 'image', found {sorted(features)}")
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        return features, cast(Any, builder).as_data_source(split=split, decoders=decoders)
    except (NotImplementedError, ValueError, KeyError) as error:
        splits = sorted(builder.info.splits)
        raise ValueError(
            f"{path}: split {split!r} cannot be read ({error}); it has {splits}, and its files "
            "have to be ArrayRecord's (download_and_prepare with file_format='array_record')"
        ) from error


def _read(source, examples, index: int) -> dict:
    try:
        return examples[index]
    except (ValueError, RuntimeError, TypeError) as error:  # RuntimeError: ArrayRecord's checksum
        raise RecordError(repr(source), f"#{index}", f"cannot be read: {error}") from error


def _key(example: dict, index: int) -> str:
    name = example.get("image/filename", example.get("file_name"))
    return name.decode("utf-8", "replace") if isinstance(name, bytes) and name else f"#{index}"


def _texts(found: object) -> tuple[str, ...] | None:
    """Return captions from any of TFDS's forms; None for other values."""
    if isinstance(found, dict):
        found = found.get("text")
    if isinstance(found, bytes):
        found = [found]
    if isinstance(found, str) or not isinstance(found, Iterable):
        return None
    texts = [entry.decode("utf-8", "replace") for entry in found if isinstance(entry, bytes)]
    return tuple(texts) or None
