"""Read the next images and write the last results while the main thread computes.

One thread reads ahead. A few threads write results, and one records them in order. Threads suffice,
because Pillow, PyAV and zlib release the interpreter's lock while they decode and compress, and JAX
does so while it computes.
"""

import concurrent.futures
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

from regionclip_jax.commands.input_images import InputImage, Unread

Written = TypeVar("Written")

NUM_WRITERS = min(4, os.cpu_count() or 1)


class Room:
    """Bound of the images in memory, from the decoded image to its recorded result.

    Args:
        images: largest number of them.
        pixels: of all together; the last image may exceed them.
    """

    def __init__(self, images: int, pixels: int):
        self._images, self._pixels = images, pixels
        self._changed = threading.Condition()
        self._is_closed = False

    def wait(self) -> bool:
        """Wait for room for an image; return False if the room is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or (self._images > 0 and self._pixels > 0)
            )
            return not self._is_closed

    def take(self, pixels: int) -> None:
        """Count an image."""
        with self._changed:
            self._images, self._pixels = self._images - 1, self._pixels - pixels

    def give_back(self, pixels: int) -> None:
        """Count an image no longer."""
        with self._changed:
            self._images, self._pixels = self._images + 1, self._pixels + pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Let no further image in."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def read_ahead(
    inputs: Generator[InputImage | Unread], room: Room
) -> Generator[InputImage | Unread]:
    """Yield images that a thread reads as long as there is room for them.

    Close the generator to end the thread. A closed room ends the images early.

    Raises:
        Exception: of reading, after the images before it.
    """
    done: queue.SimpleQueue[InputImage | Unread | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        end = None
        try:
            with contextlib.closing(inputs):
                while room.wait() and (one := next(inputs, None)) is not None:
                    if isinstance(one, InputImage):
                        room.take(one.num_pixels)
                    done.put(one)
        except BaseException as error:
            end = error
        done.put(end)

    reader = threading.Thread(target=read, name="read", daemon=True)
    reader.start()
    try:
        while (one := done.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one
    finally:
        room.close()
        reader.join()


class OrderedWrites:
    """Results written by a few threads, and recorded in the order in which they are submitted.

    Nothing is recorded after the first error, which ``finish`` raises.

    Args:
        when_failed: called at the error, in the thread that records.
    """

    def __init__(self, when_failed: Callable[[], None]):
        self._when_failed = when_failed
        self._error: BaseException | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(NUM_WRITERS, "write")
        self._submitted: queue.SimpleQueue = queue.SimpleQueue()
        self._recorder = threading.Thread(target=self._record_all, name="record", daemon=True)
        self._recorder.start()

    def submit(self, write: Callable[[], Written], record: Callable[[Written], None]) -> None:
        """Call ``write`` in a thread, and ``record`` with its result after all earlier ones."""
        self._submitted.put((self._pool.submit(write), record))

    def has_failed(self) -> bool:
        """Return True if there was an error, and nothing more is recorded."""
        return self._error is not None

    def finish(self) -> None:
        """Wait until all is recorded.

        Raises:
            Exception: the first one of a write or record.
        """
        self._submitted.put(None)
        self._recorder.join()
        self._pool.shutdown(cancel_futures=True)  # there are others after an error only
        if self._error is not None:
            raise self._error

    def stop(self, seconds: float) -> BaseException | None:
        """Begin no further write after some seconds, and wait for those that have begun.

        Call it from another thread than ``submit``, which raises RuntimeError from then on. The
        recorder gets some seconds more; it may still be recording when they are over.

        Returns:
            The first error of a write or record.
        """
        self._submitted.put(None)
        self._recorder.join(seconds)
        self._pool.shutdown(cancel_futures=True)
        self._recorder.join(seconds)
        return self._error

    def _record_all(self) -> None:
        while (entry := self._submitted.get()) is not None:
            written, record = entry
            try:
                record(written.result())
            except concurrent.futures.CancelledError:
                return
            except BaseException as error:
                self._error = error
                self._when_failed()
                return
