"""Report the rate, progress and remaining time of a run to the log and TensorBoard."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import WARNING, LogRecord
from pathlib import Path
from typing import TypeVar

from absl import flags, logging

import regionclip_jax
from regionclip_jax.reporting.stages import readable_seconds, seconds_of_all_stages

Batch = TypeVar("Batch")

_PACKAGE = str(Path(regionclip_jax.__file__).parent)


def log_own_progress() -> None:
    """Show INFO lines of this package and only warnings of others.

    Orbax and grain log every file at INFO through the same logger. Orbax also logs errors of its
    threads, each with several tracebacks, and raises them where a save is waited for.
    """
    # A script that is not an absl app has no absl handler and no parsed flags yet.
    logging.use_absl_handler()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_shown)
    sys.unraisablehook = _unraisable


def _is_shown(record: LogRecord) -> bool:
    if record.pathname.startswith(_PACKAGE):
        return True
    return record.levelno == WARNING or (record.levelno > WARNING and not _is_orbax(record))


def _unraisable(problem) -> None:
    """Print an error without a caller as Python does, except those that follow a failed save.

    TensorStore has one for each array that it still writes when Orbax has given up the save and
    closed its event loop.
    """
    if str(problem.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(problem)


def _is_orbax(record: LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}checkpoint{os.sep}" in record.pathname


class Progress:
    """Rate and remaining time of a run, as two hooks of the training loop.

    Register ``started`` for every step and ``report`` for every N steps::

        hooks = [(1, progress.started), (100, progress.report)]

    ``started`` begins the measurement after the first step, which excludes its compilation.
    ``clu.periodic_actions.ReportProgress`` counts the time of saving in its rate, and does not
    measure the wait for data.

    Args:
        num_steps: updates done at the end of the run.
        images_per_step: number of images of the global batch.
        fetch_metrics: called once per report; returns the metrics averaged since the last one.
        write_scalars: receives (step, metrics and progress), e.g. a writer's ``write_scalars``.
        clock: returns seconds; replaced in tests.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        images_per_step: int,
        fetch_metrics: Callable[[], Mapping[str, float]],
        write_scalars: Callable[[int, dict[str, float]], object],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._num_steps = num_steps
        self._images_per_step = images_per_step
        self._fetch_metrics = fetch_metrics
        self._write_scalars = write_scalars
        self._clock = clock
        self._mark: tuple[int, float] | None = None
        self._paused = 0.0
        self._waited = 0.0

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure the wait for each, reported in seconds per step.

        The wait is the cost of an input that is slower than the step.
        """
        iterator = iter(batches)
        while True:
            began = self._clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += self._clock() - began
            yield batch

    def started(self, step: int, state: object, metrics: object) -> None:
        """Begin the measurement at the first step; later calls do nothing."""
        if self._mark is None:
            self._mark = (step, self._clock())
            self._waited = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time within (evaluation, saving) from the rate."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def report(self, step: int, state: object, metrics: object) -> None:
        """Fetch the metrics, write them with the rate, log one line."""
        averages = dict(self._fetch_metrics())  # waits for the device: the clock is read after it
        rates = self._rates(step)
        self._write_scalars(step, averages | rates)
        logging.info("%s", self._line(step, averages, rates))

    def _rates(self, step: int) -> dict[str, float]:
        now = self._clock()
        mark, self._mark = self._mark, (step, now)
        paused, self._paused = self._paused, 0.0
        waited, self._waited = self._waited, 0.0
        if mark is None or mark[0] == step:
            return {}
        seconds = max(now - mark[1] - paused, 1e-9)
        steps_per_second = (step - mark[0]) / seconds
        return {
            "progress/steps_per_second": steps_per_second,
            "progress/images_per_second": steps_per_second * self._images_per_step,
            "progress/data_wait": waited / (step - mark[0]),
            "progress/seconds_left": (self._num_steps - step) / steps_per_second,
        }

    def _line(self, step: int, averages: Mapping[str, float], rates: Mapping[str, float]) -> str:
        width = len(str(self._num_steps))
        parts = [f"step {step:>{width}}/{self._num_steps} ({step / self._num_steps:4.0%})"]
        parts += [f"{name} {value:.4g}" for name, value in averages.items()]
        if rates:
            parts.append(f"{rates['progress/images_per_second']:.4g} images/s")
            parts.append(f"data {rates['progress/data_wait'] * 1e3:.0f} ms")
            left = rates["progress/seconds_left"]
            of_all = seconds_of_all_stages(left)
            later = "" if of_all is None else f", {readable_seconds(of_all)} of all stages"
            parts.append(f"{readable_seconds(left)} left{later}")
        return " | ".join(parts)
