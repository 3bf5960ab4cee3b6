"""Run a command over images: progress, images that cannot be read, and an end at any time."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from regionclip_jax.data.loading.decoding import read_any_image
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.failures import ExitStatus, explain, report
from regionclip_jax.reporting.stages import readable_seconds
from regionclip_jax.training.stopping import ending_at_once

_NAMED = 3  # of the missing images, in the last line


class ImageRun:
    """Images of a command, done one by one.

    Attributes:
        skipped: messages of the images that cannot be read.
        writing: lock to hold while files are written, so that a signal leaves them whole.

    Args:
        paths: of the images.
        save: writes what is not yet on the disk.
    """

    def __init__(self, paths: Sequence[Path], save: Callable[[], None] = lambda: None):
        self.skipped: list[str] = []
        self.writing = threading.Lock()
        self._paths, self._save = paths, save
        self._num_done = 0

    def run(
        self,
        process: Callable[[int, np.ndarray], str],
        describe: Callable[[], str],
    ) -> int:
        """Process all images; say at the end, or at a signal or an error, what is done.

        Args:
            process: gets the number of an image and its pixels, writes its results, and returns a
                text for the line of progress.
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

    def _run(self, process: Callable[[int, np.ndarray], str]) -> None:
        began = time.monotonic()
        for number, path in enumerate(self._paths):
            try:
                image = read_any_image(path)
            except (RecordError, OSError) as error:
                self.skipped.append(str(error))
                print(f"skipped: {error}", file=sys.stderr)
                continue
            said = process(number, image)
            self._num_done += 1
            spent = time.monotonic() - began
            left = spent / (number + 1) * (len(self._paths) - number - 1)
            print(
                f"{number + 1}/{len(self._paths)} {path.name}: {said} | "
                f"{(number + 1) / spent:.2f} images/s | {readable_seconds(left)} left",
                flush=True,
            )

    def _summary(self, describe: Callable[[], str], stopped: str) -> str:
        """Return the last line."""
        first_missing = self._num_done + len(self.skipped)
        missing = [str(path) for path in self._paths[first_missing:]]
        line = f"{self._num_done} images, {len(self.skipped)} skipped"
        if missing:
            named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            line += f", {len(missing)} missing ({named})"
        return (f"{stopped}: " if stopped else "") + f"{line}, {describe()}"
