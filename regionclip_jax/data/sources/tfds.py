"""Sources for ArrayRecord data sets of TensorFlow Datasets, read without TensorFlow.

The folder of a version holds ``dataset_info.json``; the code that prepared it is not needed.
Images stay encoded.
"""

import os
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import numpy as np

from regionclip_jax.data.sources.array_record_chunks import ChunkBounds, Part
from regionclip_jax.data.sources.boxed_images import Boxes, clip_box, stack_boxes
from regionclip_jax.data.sources.image_files import Size, image_size
from regionclip_jax.data.sources.records import (
    DetectionRecord,
    ImageTextRecord,
    RecordError,
    one_line,
)
from regionclip_jax.untrusted import open_regular, read_large_json

_INFO, _FEATURES = "dataset_info.json", "features.json"
_REMEDY = "prepare the data set again with TFDS"
_NAMES = {"image/filename": (), "file_name": ()}
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
        self._examples = _Examples(self._path, split)
        features = self._examples.features
        self._feature = next((name for name in _CAPTIONS if name in features), None)
        if self._feature is None:
            raise ValueError(
                f"{self._path}: expected a feature of captions ({', '.join(_CAPTIONS)}), found "
                f"{sorted(features)}"
            )
        self._examples.decode({self._feature: ("text",), **_NAMES})

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> ImageTextRecord:
        example = self._examples.read(self, index)
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
        self._examples = _Examples(self._path, split)
        features = self._examples.features
        objects = _parts(features.get(_OBJECTS))
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
        wanted = {_OBJECTS: ("bbox", "label", "is_crowd"), "image/id": (), **_NAMES}
        self._examples.decode(wanted)
        box_format = getattr(objects["bbox"], "bbox_format", None)
        if box_format is not None and box_format.name != _RELATIVE:
            raise ValueError(f"{self._path}: expected boxes as {_RELATIVE}, found {box_format}")
        self.category_names = tuple(names)
        self.category_ids = tuple(range(1, len(names) + 1))

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> DetectionRecord:
        example = self._examples.read(self, index)
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
        boxes, _ = self._boxes(self._examples.read(self, index), index)
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
        try:
            labels = np.array(objects["label"], np.int64)
            shares = np.array(objects["bbox"], np.float64).reshape(-1, 4)
            crowd = np.array(objects.get("is_crowd", [False] * len(labels)), bool)
            fits = (
                labels.shape == crowd.shape == shares.shape[:1]
                and bool(np.all(np.abs(shares) <= _LARGEST_SHARE))
                and bool(np.all(labels < len(self.category_names)))
            )
        except (ValueError, TypeError, OverflowError):
            fits = False
        if not fits:
            raise RecordError(
                repr(self),
                key,
                "expected boxes in fractions of the image and known labels, found "
                f"{str(objects)[:200]}",
            )
        rows = []
        for (y1, x1, y2, x2), label, is_crowd in zip(shares, labels, crowd, strict=True):
            corners = (x1 * size[1], y1 * size[0], x2 * size[1], y2 * size[0])
            # TFDS writes -1 for a class that was not labelled.
            if label >= 0 and (box := clip_box(corners, *size)) is not None:
                rows.append((box, int(label), bool(is_crowd), None))
        return stack_boxes(rows), size


class _Examples:
    """Random access to the examples of a split; only the wanted features are decoded.

    A feature of another kind could start a process, as TFDS's video and audio do.

    Attributes:
        features: all features by name.
    """

    def __init__(self, path: pathlib.Path, split: str):
        import tensorflow_datasets as tfds

        if not (path / _INFO).is_file():
            found = sorted(str(p.parent.relative_to(path)) for p in path.glob(f"**/{_INFO}"))
            raise FileNotFoundError(
                f"{path} has no {_INFO}: expected the folder of a version that TFDS prepared"
                + (f", such as {found[:3]} in it" if found else ", such as coco/2017/1.1.0")
            )
        builder = _builder(path)
        # TFDS declares neither the mapping nor as_data_source's arguments.
        self.features = dict(cast(Any, builder.info.features).items())
        if not isinstance(self.features.get("image"), tfds.features.Image):
            raise ValueError(
                f"{path}: expected an image as feature 'image', found {sorted(self.features)}"
            )
        self._path = path
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        try:
            parts = builder.info.splits[split].file_instructions
            # The library unpacks the footers of files when it opens them.
            for part in parts:
                open_regular(part.filename).close()
            self._bounds = ChunkBounds(
                [Part(part.filename, part.skip, part.take) for part in parts]
            )
            self._encoded = cast(Any, builder).as_data_source(split=split, deserialize_method=raw)
        except Exception as error:
            splits = sorted(builder.info.splits)
            raise ValueError(
                f"{path}: split {split!r} cannot be read ({one_line(error)}); it has {splits}, "
                "and its files have to be ArrayRecord's (download_and_prepare with "
                "file_format='array_record')"
            ) from error
        self._wanted = None

    def decode(self, wanted: Mapping[str, Collection[str]]) -> None:
        """Choose the features that are decoded.

        Args:
            wanted: names of features, each with the wanted ones of its own features, if it has any.

        Raises:
            ValueError: one of them is neither text nor numbers.
        """
        from tensorflow_datasets import features as kinds

        chosen = {}
        for name, parts in wanted.items():
            feature = self.features.get(name)
            inner = _parts(feature)
            if inner:
                inner = {part: inner[part] for part in parts if part in inner}
                is_list = hasattr(feature, "feature")
                feature = kinds.Sequence(inner) if is_list else kinds.FeaturesDict(inner)
            for leaf in inner.values() or filter(None, [feature]):
                usual = (kinds.Text, kinds.Tensor, kinds.Scalar, kinds.ClassLabel)
                leaf = getattr(leaf, "feature", leaf)  # of a sequence of texts
                encoding = cast(Any, leaf.to_json()).get("tensor", {}).get("encoding", "none")
                if type(leaf) not in (*usual, kinds.BBoxFeature) or encoding == "zlib":
                    raise ValueError(
                        f"{self._path}: feature {name!r}: expected texts or numbers, found "
                        f"{type(leaf).__name__}"
                    )
            if feature is not None:
                chosen[name] = feature
        self._wanted = kinds.FeaturesDict({"image": self.features["image"], **chosen})

    def __len__(self) -> int:
        return len(self._encoded)

    def read(self, source: object, index: int) -> dict:
        """Return an example by the names of its features, with its encoded image.

        Raises:
            RecordError: the example cannot be read; ``source`` is for the error.
        """
        from tensorflow_datasets import decode

        assert self._wanted is not None
        try:
            self._bounds.require(index)
            encoded = self._encoded[index]
            decoders = {"image": decode.SkipDecoding()}
            return cast(Any, self._wanted).deserialize_example_np(encoded, decoders=decoders)
        # TFDS and ArrayRecord raise many exceptions for damaged examples: ValueError, TypeError,
        # KeyError, RuntimeError, protobuf's DecodeError. All of them concern the example only.
        except Exception as error:
            what = f"cannot be read: {one_line(error)}"
            raise RecordError(repr(source), f"#{index}", what) from error


def _builder(path: pathlib.Path):
    """Return TFDS's builder of a folder whose files name no classes but TFDS's own.

    TFDS imports the module of any class that ``features.json`` names.
    """
    import tensorflow_datasets as tfds

    kinds = [kind for kind in vars(tfds.features).values() if isinstance(kind, type)]
    own = {f"{kind.__module__}.{kind.__name__}" for kind in kinds}
    for file in path.iterdir():
        if not file.is_dir():
            open_regular(file).close()
    read_large_json(path / _INFO, _REMEDY)
    waiting = [read_large_json(path / _FEATURES, _REMEDY)]
    while waiting:
        content = waiting.pop()
        if isinstance(content, list):
            waiting += content
        if not isinstance(content, dict):
            continue
        waiting += content.values()
        names = [content.get("pythonClassName"), content.get("python_class_name")]
        hidden = False
        if "content" in content:  # the older form, which may hold features as a text of JSON
            names.append(content.get("type"))
            hidden = isinstance(content["content"], str)
        for name in names:
            if isinstance(name, str) and (hidden or name not in own):
                raise ValueError(
                    f"{path / _FEATURES}: expected a feature of tensorflow_datasets.features, "
                    f"found {name[:80]!r}, whose code would be run; {_REMEDY}"
                )
    try:
        return tfds.builder_from_directory(path)
    except Exception as error:  # TFDS checks neither types nor keys of these files
        raise ValueError(f"{path}: TFDS cannot read it ({one_line(error)}): {_REMEDY}") from error


def _parts(feature: object) -> dict[str, Any]:
    """Return the features of a dictionary, or of a sequence of them, by name; of others none."""
    inner: Any = getattr(feature, "feature", feature)
    return dict(inner.items()) if hasattr(inner, "items") else {}


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
