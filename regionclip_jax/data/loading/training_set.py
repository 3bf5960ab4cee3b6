"""Training part of a detection source: selected classes, and the images that show them.

As in the reference, crowd boxes and boxes of other classes are ignored, and images without a
remaining box are not trained on. Source:
docs/reference/training_detectors.md#annotations, docs/reference/training_detectors.md#sampler.
"""

import collections
import difflib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from regionclip_jax.data.sources.fingerprint import fingerprint
from regionclip_jax.data.sources.records import DetectionRecord, RecordError, known_sizes


class TrainingSet:
    """Records with the boxes of ``class_names`` alone, numbered in that order.

    Attributes:
        category_names: ``class_names``.
        classes_without_box: classes without any example.
        report: counts of images, boxes and skipped entries.

    Args:
        source: detection records.
        class_names: names of the classes to train, from the source.
        max_boxes: an image with more boxes is an error before the first step.

    Raises:
        ValueError: a class that the source lacks or that comes twice, an image with too many
            boxes, or no box at all.
    """

    def __init__(self, source, class_names: Sequence[str], *, max_boxes: int):
        self._source = source
        self.category_names = tuple(class_names)
        rows = {name: row for row, name in enumerate(source.category_names)}
        for name in self.category_names:
            if name not in rows:
                close = difflib.get_close_matches(name, rows, n=1)
                raise ValueError(
                    f"{source!r} has no class {name!r}"
                    + (f"; did you mean {close[0]!r}?" if close else f"; it has {sorted(rows)[:9]}")
                )
        twice = [name for name, n in collections.Counter(self.category_names).items() if n > 1]
        if twice:
            raise ValueError(f"classes {twice[:5]} are named twice; name each once")
        self._number_of = np.full(len(rows), -1)
        self._number_of[[rows[name] for name in self.category_names]] = np.arange(
            len(self.category_names)
        )
        counts = collections.Counter()
        self._indices, self._classes = [], []
        for index in range(len(source)):
            try:
                _, classes, crowd = source.annotations(index)
            except RecordError:
                # Kept: its samples report the reason and are counted.
                self._indices.append(index)
                self._classes.append(np.zeros(0, np.int64))
                counts["images that cannot be read"] += 1
                continue
            wanted = self._number_of[classes] >= 0
            kept = wanted & ~crowd
            counts["crowd boxes skipped"] += int(crowd.sum())
            counts["boxes of other classes skipped"] += int((~wanted & ~crowd).sum())
            counts["boxes"] += int(kept.sum())
            if not kept.any():
                counts["images without a box skipped"] += 1
                continue
            if kept.sum() > max_boxes:
                raise ValueError(
                    f"{source!r}, image number {index} has {kept.sum()} boxes, more than "
                    f"max_boxes {max_boxes}: raise it"
                )
            self._indices.append(index)
            self._classes.append(self._number_of[classes[kept]])
        if not counts["boxes"]:
            raise ValueError(
                f"{source!r} has no box of the {len(self.category_names)} classes to train, such "
                f"as {self.category_names[:3]}"
            )
        with_box = set(np.concatenate(self._classes).tolist())
        self.classes_without_box = tuple(
            name for i, name in enumerate(self.category_names) if i not in with_box
        )
        self.report = {"images": len(self._indices), **counts}

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> DetectionRecord:
        record = self._source[self._indices[index]]
        numbers = self._number_of[record.classes]
        kept = (numbers >= 0) & ~record.crowd
        return DetectionRecord(
            record.key,
            record.image,
            record.boxes[kept],
            numbers[kept].astype(np.int32),
            record.crowd[kept],
            record.image_id,
            record.captions,
            None if record.masks is None else record.masks[kept],
        )

    def classes_of(self, index: int) -> Int[np.ndarray, " _"]:
        """Return the class numbers of a record's boxes without opening its image."""
        return self._classes[index]

    def index_parts(self) -> Iterator[bytes]:
        """Yield the fingerprint of the source; see ``fingerprint``."""
        yield fingerprint(self._source).encode()

    def sizes(self) -> Int[np.ndarray, "N 2"] | None:
        """Return (height, width) of the images, or None if the source does not know them."""
        sizes = known_sizes(self._source)
        return None if sizes is None else sizes[self._indices]

    def __repr__(self) -> str:
        return f"TrainingSet({self._source!r}, {len(self.category_names)} classes)"
