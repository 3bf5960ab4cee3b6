"""Draw the regions of pretraining with the concepts that the teacher gave them."""

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from regionclip_jax.reporting.drawing import CLASS_COLOURS, Mark, draw_marks
from regionclip_jax.structures import ImageTextBatch, LabelledRegions

_MOST_REGIONS = 8  # of an image: more labels would cover each other
_WIDTH = 480


def draw_labelled_regions(
    batch: ImageTextBatch, regions: LabelledRegions, concepts: Sequence[str]
) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """Draw the images of a batch with their most confident kept regions.

    Args:
        batch: images on the host.
        regions: rows of these images, and of more, on the host.
        concepts: names by number.

    Returns:
        Image by name, ``pseudo_labels/0`` and so on. Skipped records have none.
    """
    drawn = {}
    for row in np.flatnonzero(batch.mask):
        height, width = batch.sizes[row]
        confidence = np.where(regions.keep[row], regions.confidence[row], -1.0)
        best = [i for i in np.argsort(-confidence)[:_MOST_REGIONS] if confidence[i] >= 0]
        marks = [
            Mark(
                regions.boxes[row, i].tolist(),
                f"{concepts[regions.concepts[row, i]]} {confidence[i]:.0%}",
                colour=CLASS_COLOURS[number % len(CLASS_COLOURS)],
            )
            for number, i in enumerate(best)
        ]
        image = batch.images[row, :height, :width]
        drawn[f"pseudo_labels/{row}"] = draw_marks(image, marks, width=_WIDTH)
    return drawn


class BackgroundImages:
    """Images drawn and written by a thread, so that the next step does not wait for them.

    Args:
        write_images: receives (step, images by name), e.g. a writer's ``write_images``.
    """

    def __init__(self, write_images: Callable[[int, Mapping[str, np.ndarray]], object]):
        self._write_images = write_images
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "images")
        self._last: concurrent.futures.Future | None = None

    def write(self, step: int, draw: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Draw and write in the background; drop the images if the last ones are not written yet.

        Raises:
            Exception: of drawing or writing the last images.
        """
        if self._last is not None:
            if not self._last.done():
                return
            self._last.result()
        self._last = self._pool.submit(lambda: self._write_images(step, draw()))

    def wait(self) -> None:
        """Wait until the last images are written; ``write`` and ``close`` raise their exception."""
        if self._last is not None:
            concurrent.futures.wait([self._last])

    def close(self) -> None:
        """Wait for the last images; raise their exception."""
        self._pool.shutdown()
        if self._last is not None:
            self._last.result()
