"""Results of the public API: detections and proposals of an image, drawn or for other libraries."""

import dataclasses
import html
import importlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from regionclip_jax.artifacts.coco_datasets import coco_annotations, coco_categories, coco_image
from regionclip_jax.data.loading.decoding import AnyImage, read_any_image
from regionclip_jax.data.loading.tiles import merge_tiles
from regionclip_jax.extras import require_extra
from regionclip_jax.reporting.detection_drawing import best_names, draw_detections
from regionclip_jax.reporting.drawing import class_colour, score_text

_SHOWN_ROWS = 50  # of the table of a notebook


@dataclasses.dataclass(frozen=True)
class Detected:
    """Detections of one image, best first. A notebook shows them as a table."""

    boxes: Float[np.ndarray, "K 4"]  # xyxy, pixels of the given image
    # Probabilities, 0 to 1; with objectness "reference" a product that may exceed 1.
    scores: Float[np.ndarray, " K"]
    classes: Int[np.ndarray, " K"]  # rows of the vocabulary
    names: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()
    size: tuple[int, int] | None = None  # height and width of the given image
    gives_probabilities: bool = True

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, rows: Sequence[int]) -> "Detected":
        """Return some of the detections."""
        index = np.asarray(rows, np.int64)
        return dataclasses.replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            classes=self.classes[index],
            names=tuple(self.names[row] for row in rows),
        )

    def draw(
        self, image: AnyImage, *, score: float = 0.0, max_boxes: int = 30, legend: bool = True
    ) -> Image.Image:
        """Return the annotated image, with the best name of each box.

        Args:
            image: the one that was given to ``detect``.
            score: only boxes with a score above this are drawn.
            max_boxes: largest number of boxes.
            legend: add a strip below the image with the classes.

        Raises:
            ValueError: the image has another size than the one of the detections.
        """
        pixels = read_any_image(image)
        if self.size is not None and pixels.shape[:2] != self.size:
            raise ValueError(
                f"image: {pixels.shape[0]} x {pixels.shape[1]} (height x width), expected "
                f"{self.size[0]} x {self.size[1]}: the image of these detections, as it was given "
                "to detect (a path is turned by its EXIF orientation)"
            )
        kept = [row for row in best_names(self.boxes) if self.scores[row] > score][:max_boxes]
        some = self.rows(kept)
        drawn = draw_detections(
            pixels,
            some.boxes,
            [(name, float(value)) for name, value in zip(some.names, some.scores, strict=True)],
            some.classes.tolist(),
            legend=legend,
            probabilities=self.gives_probabilities,
        )
        return Image.fromarray(drawn)

    def to_coco(self, file_name: str = "image.jpg") -> dict:
        """Return a dataset of this image in COCO's JSON format, with scores.

        Args:
            file_name: of the image in the dataset.

        Raises:
            ValueError: the size of the image is unknown.
        """
        if self.size is None:
            raise ValueError("size: found None, expected (height, width), as detect gives it")
        annotations = coco_annotations(
            self.boxes, self.scores, self.classes, image_id=1, first_id=1
        )
        return {
            "info": {"description": "detections of regionclip_jax"},
            "licenses": [],
            "categories": coco_categories(self.vocabulary),
            "images": [coco_image(1, file_name, self.size)],
            "annotations": annotations,
        }

    def to_supervision(self):
        """Return ``supervision.Detections``, with the names as ``data["class_name"]``.

        Raises:
            MissingExtra: supervision is not installed.
        """
        require_extra("supervision", "to_supervision")
        supervision = importlib.import_module("supervision")
        return supervision.Detections(
            xyxy=np.asarray(self.boxes, np.float32).reshape(-1, 4),
            confidence=np.asarray(self.scores, np.float32),
            class_id=np.asarray(self.classes, np.int64),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        shown = min(len(self), _SHOWN_ROWS)
        rows = [
            f'<tr><td style="border-left:8px solid rgb{class_colour(int(row))}">'
            f"{html.escape(name)}</td><td>{score_text(float(score), self.gives_probabilities)}</td>"
            + "".join(f"<td>{side:.1f}</td>" for side in box)
            + "</tr>"
            for name, score, row, box in zip(
                self.names[:shown], self.scores, self.classes, self.boxes.tolist(), strict=False
            )
        ]
        more = f"; {len(self) - shown} more" if len(self) > shown else ""
        head = "".join(f"<th>{title}</th>" for title in ("name", "score", "x1", "y1", "x2", "y2"))
        return (
            f"<table><caption>{len(self)} detections{more}</caption>"
            f"<tr>{head}</tr>{''.join(rows)}</table>"
        )


def merge_detections(
    every: Sequence[Detected],
    corners: Sequence[tuple[int, int]],
    merge_threshold: float,
    most: int | None,
) -> Detected:
    """Return the detections of an image and of its tiles as those of the image.

    Args:
        every: detections of the image, then those of each tile.
        corners: x and y of the upper left corner of each of them, in pixels of the image.
        merge_threshold: as of ``data.loading.tiles.merge_tiles``.
        most: largest number of detections.
    """
    number = np.repeat(np.arange(len(every)), [len(found) for found in every])
    moves = np.tile(np.asarray(corners, np.float32), 2)[number]
    boxes = np.concatenate([found.boxes for found in every]) + moves
    scores = np.concatenate([found.scores for found in every])
    classes = np.concatenate([found.classes for found in every])
    kept = merge_tiles(boxes, scores, classes, number, merge_threshold)[:most]
    image = every[0]
    return dataclasses.replace(
        image,
        boxes=boxes[kept],
        scores=scores[kept],
        classes=classes[kept],
        names=tuple(image.vocabulary[row] for row in classes[kept]),
    )


@dataclasses.dataclass(frozen=True)
class Proposed:
    """Proposals of a localizer for one image, best first."""

    boxes: Float[np.ndarray, "R 4"]  # xyxy, pixels of the given image
    logits: Float[np.ndarray, " R"]  # objectness, before a sigmoid

    def __len__(self) -> int:
        return len(self.logits)
