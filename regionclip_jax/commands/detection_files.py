"""Files of detections: a line for each image as it is done, and all of them as a COCO dataset."""

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path

from regionclip_jax.artifacts.coco_datasets import coco_annotations, coco_categories, coco_image
from regionclip_jax.commands.input_images import InputImage
from regionclip_jax.files import names_path, replace_text
from regionclip_jax.model import Detected


class DetectionFiles:
    """``detections.jsonl`` and ``detections.json`` of a folder.

    The first has a line of every image as soon as it is done. The second is a dataset in COCO's
    format, valid at any time. Writing it takes longer with every image, so ``is_due`` waits until
    ten times the duration of the last write has passed.

    Args:
        folder: where to write.
        names: of the vocabulary.
        info: facts about all images, which become a part of the dataset's ``info``.
        num_images: number of files that are to be done or skipped.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], info: dict, num_images: int):
        self._lines, self._dataset = folder / "detections.jsonl", folder / "detections.json"
        self._categories, self._info = coco_categories(names), info
        self._num_images = num_images
        # Entries as JSON: objects would take several times the memory.
        self._images: list[str] = []
        self._annotations: list[str] = []
        self._num_annotations = 0
        self._file: io.FileIO | None = None
        self._next_write, self._num_written = 0.0, -1

    def begin(self) -> None:
        """Empty the file of lines."""
        with names_path(self._lines):
            self._file = open(self._lines, "wb", buffering=0)

    def add(
        self, path: Path, name: str, drawn: str | None, found: Detected, image: InputImage
    ) -> None:
        """Write the line of an image.

        Args:
            path: of the image or video, as given.
            name: its path below the folder that holds all images.
            drawn: name of the annotated image, if there is one.
            found: its detections.
            image: states the frame of a video.
        """
        image_id = len(self._images) + 1
        annotations = coco_annotations(
            found.boxes,
            found.scores,
            found.classes,
            image_id=image_id,
            first_id=self._num_annotations + 1,
        )
        detections = [
            {"box": [round(float(v), 2) for v in box], "score": annotation["score"], "class": name}
            for box, annotation, name in zip(found.boxes, annotations, found.names, strict=True)
        ]
        assert found.size is not None
        height, width = found.size
        frame, file_name = {}, name
        if image.frame is not None:
            frame = {"frame": image.frame, "time": image.time}
            file_name = f"{name}/frame_{image.frame:06d}.png"
        self._append(
            {
                "file": str(path),
                **frame,
                "height": height,
                "width": width,
                "drawn": drawn,
                "detections": detections,
            }
        )
        self._images.append(json.dumps(coco_image(image_id, file_name, found.size)))
        if annotations:
            self._annotations.append(",\n".join(json.dumps(entry) for entry in annotations))
        self._num_annotations += len(annotations)

    def is_due(self) -> bool:
        """Return True if it is time for the next write of the dataset."""
        return time.monotonic() >= self._next_write

    def save(self, skipped: Sequence[str], complete: bool) -> None:
        """Write the dataset, unless the file states the same.

        Args:
            skipped: messages of the images that cannot be read.
            complete: True if every image is done or skipped.
        """
        num_known = len(self._images) + len(skipped) + complete
        if num_known == self._num_written:
            return
        began = time.monotonic()
        info = {
            **self._info,
            "num_images": self._num_images,
            "complete": complete,
            "skipped": list(skipped),
        }
        parts = (
            f'"info": {json.dumps(info, indent=1)}',
            '"licenses": []',
            f'"categories": {json.dumps(self._categories)}',
            '"images": [\n' + ",\n".join(self._images) + "\n]",
            '"annotations": [\n' + ",\n".join(self._annotations) + "\n]",
        )
        replace_text(self._dataset, "{" + ",\n".join(parts) + "}\n")
        ended = time.monotonic()
        self._next_write, self._num_written = ended + 10 * (ended - began), num_known

    def describe(self) -> str:
        return f"{self._num_annotations} detections: {self._dataset}"

    def _append(self, entry: dict) -> None:
        """Write a line whole; on a full disk none of it."""
        with names_path(self._lines):
            assert self._file is not None
            line = json.dumps(entry).encode() + b"\n"
            start = self._file.tell()
            try:
                while (written := self._file.tell() - start) < len(line):
                    self._file.write(line[written:])
            except OSError:
                self._file.seek(start)
                self._file.truncate()
                raise
