"""Read the images of a command: files, and frames of videos."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from regionclip_jax.data.loading.decoding import read_any_image
from regionclip_jax.data.loading.video import is_video, read_frames
from regionclip_jax.data.sources.records import RecordError


@dataclasses.dataclass(frozen=True)
class InputImage:
    """Image of a file, or frame of a video.

    Attributes:
        number: of the file.
        pixels: RGB uint8 [H, W, 3].
        frame, time: number of the frame from 0, and its seconds; None for an image file.
    """

    number: int
    pixels: np.ndarray
    frame: int | None = None
    time: float | None = None

    @property
    def num_pixels(self) -> int:
        return self.pixels.shape[0] * self.pixels.shape[1]


@dataclasses.dataclass(frozen=True)
class Unread:
    """Place in the order of images at which there is none.

    Attributes:
        number: of the file.
        skipped: why an image or a frame cannot be read; None at the end of a video.
        ends_file: True if the file has no further image.
    """

    number: int
    skipped: str | None
    ends_file: bool


def read_inputs(paths: Sequence[Path], every: int | None) -> Iterator[InputImage | Unread]:
    """Yield the images of the files in order.

    Args:
        every: each such frame of videos is an image; None: videos are no images.
    """
    for number, path in enumerate(paths):
        try:
            if every is None or not is_video(path):
                yield InputImage(number, read_any_image(path))
                continue
            for frame in read_frames(path, every):
                if isinstance(frame, RecordError):
                    yield Unread(number, str(frame), ends_file=False)
                else:
                    yield InputImage(number, frame.pixels, frame.number, frame.time)
        except (RecordError, OSError) as error:
            yield Unread(number, str(error), ends_file=True)
        else:
            yield Unread(number, None, ends_file=True)
