"""Detections for clients: one at a time, in a thread of their own, behind a bounded queue."""

import asyncio
import concurrent.futures
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator

from regionclip_jax.artifacts.vocabulary import FILE_NAME
from regionclip_jax.data.loading.decoding import decode_image
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.model import RegionCLIP
from regionclip_jax.reporting.detection_drawing import best_names
from regionclip_jax.reporting.drawing import class_colour, score_text
from regionclip_jax.serving.forms import Upload
from regionclip_jax.serving.limits import Limits, Refused
from regionclip_jax.serving.word_embeddings import WordEmbeddings
from regionclip_jax.settings import UserError

_MOST_RETRY_SECONDS = 60


class Detections:
    """Queue of detections with one model.

    Attributes:
        own_names: names of the model directory's vocabulary, none if it has no vocabulary.

    Args:
        model: has a localizer.
        limits: states the number of requests at once, and the time of a detection.
    """

    def __init__(self, model: RegionCLIP, limits: Limits):
        self._model, self._limits = model, limits
        self._words = WordEmbeddings(model)
        has_own = (model.directory / FILE_NAME).exists()
        self._own = model.vocabulary() if has_own else None
        self.own_names = () if self._own is None else self._own.names
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "detection")
        self._turn = asyncio.Lock()
        self._num_admitted = 0
        self._late: asyncio.Future | None = None  # the last detection over its time
        self._is_running = False
        self._seconds = 1.0  # of the last detection

    @contextlib.contextmanager
    def admission(self) -> Iterator[None]:
        """Count a request while the context is open.

        Raises:
            Refused: 503: as many requests as allowed are open, or a detection is over its time.
        """
        self._require_in_time()
        if self._num_admitted >= self._limits.requests:
            seconds = math.ceil(self._seconds * self._num_admitted)
            raise Refused(
                503,
                f"the server is busy with {self._num_admitted} other requests; try again later",
                min(max(seconds, 1), _MOST_RETRY_SECONDS),
            )
        self._num_admitted += 1
        try:
            yield
        finally:
            self._num_admitted -= 1

    def _require_in_time(self) -> None:
        """Refuse while a detection is over its time: the thread computes it to its end."""
        if self._late is not None and not self._late.done():
            raise Refused(
                503,
                "the server is busy with a detection of more than "
                f"{self._limits.detection_seconds:g} seconds; try again later",
                _MOST_RETRY_SECONDS,
            )

    def is_running(self) -> bool:
        """Return True while the thread is in a detection."""
        return self._is_running

    async def detect(self, upload: Upload, is_gone: Callable[[], Awaitable[bool]]) -> dict | None:
        """Detect when the earlier requests are done.

        Args:
            is_gone: returns True if no one waits for the answer any more.

        Returns:
            The answer as JSON (docs/serving.md), or None if no one waits for it.

        Raises:
            Refused: 422: the image or the words cannot be used; 503: an earlier detection is over
                its time; 504: this one is.
        """
        if not upload.names and self._own is None:
            raise Refused(
                422,
                f"words: found none, and the model directory has no {FILE_NAME}; type the names "
                "of the objects, separated by commas",
            )
        async with self._turn:
            self._require_in_time()
            if await is_gone():
                return None
            running = asyncio.wrap_future(self._thread.submit(self._answer, upload))
            # asyncio reports an error as a bug if no one has asked for it.
            running.add_done_callback(asyncio.Future.exception)
            # Neither the end of the time nor a cancelled request ends what the thread computes.
            done, _ = await asyncio.wait([running], timeout=self._limits.detection_seconds)
            if done:
                return running.result()
            self._late = running
            raise Refused(
                504,
                f"the detection takes more than {self._limits.detection_seconds:g} seconds, the "
                "limit; it goes on, and the server is busy until it ends; then send the request "
                "again: its words and programs are kept",
            )

    def _answer(self, upload: Upload) -> dict:
        self._is_running = True
        began = time.monotonic()
        try:
            return self._detect(upload, began)
        except RecordError as error:
            raise Refused(422, f"{error.key}: {error.what}") from error
        except UserError as error:
            raise Refused(422, str(error)) from error
        finally:
            self._seconds = time.monotonic() - began
            self._is_running = False

    def _detect(self, upload: Upload, began: float) -> dict:
        pixels = decode_image(upload.image, source="upload", key=upload.file_name)
        vocabulary = self._words.vocabulary(upload.names) if upload.names else self._own
        found = self._model.detect(pixels, vocabulary)
        found = found.rows(best_names(found.boxes))
        return {
            "dataset": found.to_coco(upload.file_name),
            "labels": [score_text(float(s), found.gives_probabilities) for s in found.scores],
            "colours": {
                int(row) + 1: _hexadecimal(class_colour(int(row))) for row in found.classes
            },
            "seconds": round(time.monotonic() - began, 3),
        }


def _hexadecimal(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()
