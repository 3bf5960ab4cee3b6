"""Records of a source: one encoded image with its captions or boxes."""

import bisect
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8


class RecordError(Exception):
    """One record cannot be used. The pipeline turns it into a masked row and a text.

    Args:
        source: ``repr`` of the source.
        key: key of the record in the source.
        what: found and expected content.
    """

    def __init__(self, source: str, key: str, what: str):
        super().__init__(source, key, what)
        self.source, self.key, self.what = source, key, what

    def __str__(self) -> str:
        return f"{self.source}, record {self.key}: {self.what}"


class SizeMismatch(RecordError):
    """The image of a record has another size than its boxes were annotated at."""


@dataclasses.dataclass(frozen=True)
class ImageTextRecord:
    """Image with captions or tags.

    Attributes:
        key: names the record in messages.
        image: the encoded file (JPEG, PNG, ...).
        captions: alternatives; one is drawn for each sample.
        tags: words about the image. If a record has both, a sample draws captions or tags with
            equal probability. A prompt template turns tags into a caption
            (docs/reference/pretraining_data.md#captions).
        size: (height, width) of the image that the source gives, if any. It decides whether the
            image is turned by its EXIF orientation (``image_files.image_frame``).
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    tags: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionRecord:
    """Image with annotated boxes.

    Attributes:
        key: names the record in messages.
        image: the encoded file.
        boxes: ``(x1, y1, x2, y2)`` in pixels of the original image, in the frame of ``size``.
        classes: index into the source's ``category_names``.
        crowd: True for a box around a group, which is neither a target nor an error.
        image_id: as in the annotation file, for the official metrics.
        captions: captions of the image, if the source has them.
        masks: mask of each object over its own box, if requested (``boxed_images.rasterize``).
        size: as in ``ImageTextRecord``. An image of another size is skipped.
    """

    key: str
    image: bytes
    boxes: Float[np.ndarray, "G 4"]
    classes: Int[np.ndarray, " G"]
    crowd: Bool[np.ndarray, " G"]
    image_id: int
    captions: tuple[str, ...] = ()
    masks: UInt8[np.ndarray, "G P P"] | None = None
    size: tuple[int, int] | None = None


RecordT = TypeVar("RecordT", ImageTextRecord, DetectionRecord, covariant=True)


@runtime_checkable
class Source(Protocol[RecordT]):
    """Random access to records. Must be picklable, and ``repr`` must be the same in every run.

    A source that knows the sizes of its images without opening them has a method
    ``sizes() -> Int[np.ndarray, "N 2"] | None``: (height, width) as decoded.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RecordT: ...

    def __repr__(self) -> str: ...


def one_line(error: Exception) -> str:
    """Return the type and the first line of a library's error, for a message of one line."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"


def known_sizes(source: Source) -> Int[np.ndarray, "N 2"] | None:
    """Return (height, width) of all images of a source, or None if it would have to open them."""
    sizes = getattr(source, "sizes", None)
    return None if sizes is None else sizes()


def locate(source: Source, ends: Sequence[int], index: int) -> tuple[int, int]:
    """Return the part of a source that holds a record, and the record's row in it.

    Args:
        ends: number of records up to the end of each part.

    Raises:
        IndexError: the source has no such record.
    """
    if not 0 <= index < ends[-1]:
        raise IndexError(f"{source!r} has {ends[-1]} records, asked for {index}")
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


class PackedTexts:
    """Sequence of texts in one block of memory; lone surrogates are preserved."""

    def __init__(self, texts: Iterable[str]):
        pieces = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self._bytes = b"".join(pieces)

    def __len__(self) -> int:
        return len(self._ends)

    def index_parts(self) -> Iterable[bytes]:
        """Yield the content of all texts; see ``fingerprint``."""
        return self._ends.tobytes(), self._bytes

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].decode("utf-8", "surrogatepass")
