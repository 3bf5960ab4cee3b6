"""Run a command over images: progress, images that cannot be read, and an end at any time."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from regionclip_jax.commands.input_images import InputImage, Unread, read_inputs
from regionclip_jax.commands.overlapping import NUM_WRITERS, OrderedWrites, Room, read_ahead
from regionclip_jax.failures import ExitStatus, explain, report
from regionclip_jax.reporting.stages import readable_seconds
from regionclip_jax.training.stopping import ending_at_once

Result = TypeVar("Result")
Written = TypeVar("Written")

_NAMED = 3  # of the missing images, in the last line
# Images wait for each other up to this number of pixels: some 400 MB.
_MOST_WAITING_PIXELS = 2**27
# So much room that some images are read and others written while these are computed.
_MOST_PIXELS = 2 * _MOST_WAITING_PIXELS
_SECONDS_TO_STOP = 1.0  # before the writes that have not begun are dropped, and once more after it


class ImageRun:
    """Images of a command, done in order.

    While some images are computed, the next ones are read and the results of the last ones written.

    Attributes:
        skipped: messages of the images that cannot be read.

    Args:
        paths: of the images.
        save: writes what is not yet on the disk.
        together: number of images that are computed at once, fewer if they are large. Images that
            are not yet computed are lost at an error or a signal.
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
        self._paths, self._save = paths, save
        self._together, self._every = together, every
        self._num_done = 0
        self._finished: set[int] = set()  # numbers of paths that are done or skipped
        # Held while results are recorded or saved, so that a signal leaves them whole.
        self._recording = threading.Lock()
        self._is_stopping = False  # at a signal: the main thread says no more
        self._is_stopped = False  # nothing more is recorded
        self._began = 0.0

    def is_complete(self) -> bool:
        """Return True if every image is done or skipped."""
        return len(self._finished) == len(self._paths)

    def run(
        self,
        compute: Callable[[list[InputImage]], list[Result]],
        write: Callable[[InputImage, Result], Written],
        record: Callable[[InputImage, Written], str],
        describe: Callable[[], str],
    ) -> int:
        """Process all images; say at the end, or at a signal or an error, what is done.

        Args:
            compute: gets some images, and returns a result for each. Called in this thread.
            write: writes the files that an image has alone. Called in several threads, with images
                in any order.
            record: gets what ``write`` returned, writes to the files of all images, and returns a
                text for the line of progress. Called in one thread, with images in order.
            describe: returns a text about the results for the last line.

        Returns:
            The exit status: 0, 1 if an image is missing in the results, or that of the error
            (``failures``). A signal ends the process with 128 plus its number (SIGTERM 143, Ctrl-C
            130).
        """
        room = Room(3 * max(self._together, NUM_WRITERS), _MOST_PIXELS)
        writes = OrderedWrites(when_failed=room.close)

        def submit(image: InputImage, result: Result) -> None:
            def record_and_say(written: Written) -> None:
                self._record(image, lambda: record(image, written))
                room.give_back(image.num_pixels)

            writes.submit(lambda: write(image, result), record_and_say)

        def farewell(number: signal.Signals) -> int:
            self._is_stopping = True
            failure = writes.stop(_SECONDS_TO_STOP)
            if failure is not None:  # the main thread has not noticed it
                print(f"error: {type(failure).__name__}: {failure}", file=sys.stderr)
            with self._recording:
                self._is_stopped = True
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
                try:
                    self._compute_all(compute, submit, writes, room)
                finally:
                    # An error of a result is raised in place of one of a later image.
                    writes.finish()
                with self._recording:
                    self._save()
                stopped = ""
            except Exception as error:
                explained = explain(error, ValueError)
                if explained is None:
                    raise
                status = report(error, *explained, prefix="error")
            finally:
                with self._recording:
                    if not self._is_stopping:
                        with contextlib.suppress(OSError):  # after an error that was reported
                            self._save()
                        print(self._summary(describe, stopped), flush=True)
        return status if stopped or self.skipped or not self.is_complete() else 0

    def _compute_all(
        self,
        compute: Callable[[list[InputImage]], list[Result]],
        submit: Callable[[InputImage, Result], None],
        writes: OrderedWrites,
        room: Room,
    ) -> None:
        self._began = time.monotonic()
        inputs = read_ahead(read_inputs(self._paths, self._every), room)
        with contextlib.closing(inputs):
            for group in self._groups(inputs):
                if writes.has_failed():
                    return
                images = [one for one in group if isinstance(one, InputImage)]
                results = iter(compute(images) if images else [])
                for one in group:
                    if isinstance(one, InputImage):
                        submit(one, next(results))
                    else:
                        writes.submit(lambda: None, lambda _, one=one: self._skip(one))
                # The next images may take the memory of these.
                group.clear()
                del images, one

    def _groups(self, inputs: Iterable[InputImage | Unread]) -> Iterator[list[InputImage | Unread]]:
        """Yield inputs with the images to compute at once."""
        group: list[InputImage | Unread] = []
        num_images = num_pixels = 0
        for one in inputs:
            group.append(one)
            if isinstance(one, InputImage):
                num_images, num_pixels = num_images + 1, num_pixels + one.num_pixels
            # Without an image to wait for, it is said at once that one is skipped.
            if num_images in (0, self._together) or num_pixels >= _MOST_WAITING_PIXELS:
                yield group
                group, num_images, num_pixels = [], 0, 0
        if group:
            yield group

    def _record(self, image: InputImage, record: Callable[[], str]) -> None:
        """Record an image, and print its line of progress."""
        with self._recording:
            if self._is_stopped:
                return
            said = record()
            self._num_done += 1
            if image.frame is None:
                self._finished.add(image.number)
        name = self._paths[image.number].name
        if image.frame is not None:
            name += f" frame {image.frame}"
        spent = time.monotonic() - self._began
        left = spent / (image.number + 1) * (len(self._paths) - image.number - 1)
        print(
            f"{image.number + 1}/{len(self._paths)} {name}: {said} | "
            f"{self._num_done / spent:.2f} images/s | {readable_seconds(left)} left",
            flush=True,
        )

    def _skip(self, one: Unread) -> None:
        """Count and print that an image is skipped, or count the end of its file."""
        with self._recording:
            if self._is_stopped:
                return
            if one.skipped is not None:
                self.skipped.append(one.skipped)
            if one.ends_file:
                self._finished.add(one.number)
        if one.skipped is not None:
            print(f"skipped: {one.skipped}", file=sys.stderr)

    def _summary(self, describe: Callable[[], str], stopped: str) -> str:
        """Return the last line."""
        line = f"{self._num_done} images, {len(self.skipped)} skipped"
        missing = [str(p) for n, p in enumerate(self._paths) if n not in self._finished]
        if missing:
            named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            line += f", {len(missing)} missing ({named})"
        return (f"{stopped}: " if stopped else "") + f"{line}, {describe()}"
