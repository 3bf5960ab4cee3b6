"""Run a command over images: progress, images that cannot be read, and an end at any time."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from regionclip_jax.data.loading.decoding import read_any_image
from regionclip_jax.data.loading.video import is_video, read_frames
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.failures import ExitStatus, explain, report
from regionclip_jax.reporting.stages import readable_seconds
from regionclip_jax.training.stopping import ending_at_once

_NAMED = 3  # of the missing images, in the last line
# Images wait for each other up to this number of pixels: some 400 MB.
_MOST_WAITING_PIXELS = 2**27


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


class ImageRun:
    """Images of a command, done in order.

    Attributes:
        skipped: messages of the images that cannot be read.
        writing: lock to hold while files are written, so that a signal leaves them whole.

    Args:
        paths: of the images.
        save: writes what is not yet on the disk.
        together: number of images that ``process`` gets at once, fewer if they are large. Images
            that are not yet processed are lost at an error or a signal.
        every: each such frame of videos is an image; None: videos are no images.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        save: Callable[[], None] = lambda: None,
        together: int = 1,
        every: int | None = None,
    ):
        self.skipped: list[str] = []
        self.writing = threading.Lock()
        self._paths, self._save = paths, save
        self._together, self._every = together, every
        self._num_done = 0
        self._finished: set[int] = set()  # numbers of paths that are done or skipped

    def is_complete(self) -> bool:
        """Return True if every image is done or skipped."""
        return len(self._finished) == len(self._paths)

    def run(
        self,
        process: Callable[[list[InputImage]], list[str]],
        describe: Callable[[], str],
    ) -> int:
        """Process all images; say at the end, or at a signal or an error, what is done.

        Args:
            process: gets some images, writes their results, and returns a text for each, for the
                lines of progress.
            describe: returns a text about the results for the last line.

        Returns:
            The exit status: 0, 1 if an image is missing in the results, or that of the error
            (``failures``). A signal ends the process with 128 plus its number (SIGTERM 143, Ctrl-C
            130).
        """

        def farewell(number: signal.Signals) -> int:
            with self.writing:
                try:
                    self._save()
                except OSError as error:
                    print(f"error: {error}", file=sys.stderr)
                line = self._summary(describe, f"stopped by {number.name}")
            os.write(1, f"{line}\n".encode())
            return 128 + number

        stopped, status = "stopped by an error", ExitStatus.ERROR
        with ending_at_once(farewell):
            try:
                self._run(process)
                with self.writing:
                    self._save()
                stopped = ""
            except Exception as error:
                explained = explain(error, ValueError)
                if explained is None:
                    raise
                status = report(error, *explained, prefix="error")
            finally:
                with self.writing:
                    with contextlib.suppress(OSError):  # after an error that was reported
                        self._save()
                    print(self._summary(describe, stopped), flush=True)
        return status if self.skipped or stopped else 0

    def _run(self, process: Callable[[list[InputImage]], list[str]]) -> None:
        began = time.monotonic()
        for some in self._batches():
            for one, said in zip(some, process(some), strict=True):
                self._num_done += 1
                name = self._paths[one.number].name
                if one.frame is None:
                    self._finished.add(one.number)
                else:
                    name += f" frame {one.frame}"
                spent = time.monotonic() - began
                left = spent / (one.number + 1) * (len(self._paths) - one.number - 1)
                print(
                    f"{one.number + 1}/{len(self._paths)} {name}: {said} | "
                    f"{self._num_done / spent:.2f} images/s | {readable_seconds(left)} left",
                    flush=True,
                )

    def _batches(self) -> Iterator[list[InputImage]]:
        """Yield images to process at once."""
        waiting: list[InputImage] = []
        num_pixels = 0
        for number, path in enumerate(self._paths):
            for image in self._read(number, path):
                waiting.append(image)
                num_pixels += image.pixels.shape[0] * image.pixels.shape[1]
                if len(waiting) == self._together or num_pixels >= _MOST_WAITING_PIXELS:
                    yield waiting
                    waiting, num_pixels = [], 0
            if self._every is not None and is_video(path):
                if waiting:
                    yield waiting
                    waiting, num_pixels = [], 0
                self._finished.add(number)
        if waiting:
            yield waiting

    def _read(self, number: int, path: Path) -> Iterator[InputImage]:
        """Yield the images of a file; count and print those that cannot be read."""
        try:
            if self._every is None or not is_video(path):
                yield InputImage(number, read_any_image(path))
                return
            for frame in read_frames(path, self._every):
                if isinstance(frame, RecordError):
                    self._skip(frame)
                else:
                    yield InputImage(number, frame.pixels, frame.number, frame.time)
        except (RecordError, OSError) as error:
            self._skip(error)
            self._finished.add(number)

    def _skip(self, error: Exception) -> None:
        self.skipped.append(str(error))
        print(f"skipped: {error}", file=sys.stderr)

    def _summary(self, describe: Callable[[], str], stopped: str) -> str:
        """Return the last line."""
        line = f"{self._num_done} images, {len(self.skipped)} skipped"
        missing = [str(p) for n, p in enumerate(self._paths) if n not in self._finished]
        if missing:
            named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            line += f", {len(missing)} missing ({named})"
        return (f"{stopped}: " if stopped else "") + f"{line}, {describe()}"
