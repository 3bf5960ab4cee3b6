"""Stages of a long command: which one runs, and how long all of them will still take."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from absl import logging

Result = TypeVar("Result")

# The stages of the command that runs, if it has any; ``reporting.progress`` asks them.
_running: "Stages | None" = None


class Stages:
    """Run the stages of a command one after the other.

    The remaining time is that of the usual seconds of the later stages, multiplied by how much
    slower than usual the last stage was that did not end at once, as finished ones do.

    Args:
        usual: stages in their order, with the seconds that they usually take.
        clock: returns seconds; replaced in tests.

    Attributes:
        seconds: duration of each stage that has ended.
    """

    def __init__(self, usual: Mapping[str, float], clock: Callable[[], float] = time.monotonic):
        self.seconds: dict[str, float] = {}
        self._usual, self._clock = dict(usual), clock
        self._name, self._began, self._slowness = "", 0.0, 1.0

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """Return the result of the stage ``name``."""
        global _running
        number = list(self._usual).index(name) + 1
        self._name, self._began = name, self._clock()
        left = readable_seconds(self._after(self._usual[name] * self._slowness))
        logging.info("stage %d of %d: %s; about %s left", number, len(self._usual), name, left)
        _running = self
        try:
            result = work()
        finally:
            _running = None
        self.seconds[name] = self._clock() - self._began
        self._measure(self.seconds[name])
        return result

    def seconds_left(self, of_stage: float) -> float:
        """Return the seconds of the running stage's rest, which is given, and of later stages."""
        self._measure(self._clock() - self._began + of_stage)
        return self._after(of_stage)

    def _measure(self, duration: float) -> None:
        # A stage that an earlier start finished tells nothing.
        if duration > 0.1 * self._usual[self._name]:
            self._slowness = duration / self._usual[self._name]

    def _after(self, of_stage: float) -> float:
        names = list(self._usual)
        later = names[names.index(self._name) + 1 :]
        return of_stage + self._slowness * sum(self._usual[name] for name in later)


def seconds_of_all_stages(of_stage: float) -> float | None:
    """Return the remaining seconds of the running command; None if it has no stages.

    Args:
        of_stage: remaining seconds of the running stage.
    """
    return None if _running is None else _running.seconds_left(of_stage)


def readable_seconds(seconds: float) -> str:
    """Format seconds in the two largest units: ``42s``, ``3m 05s``, ``2h 07m``, ``3d 04h``."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d {hours % 24:02}h"
    if hours:
        return f"{hours}h {minutes % 60:02}m"
    if minutes:
        return f"{minutes}m {whole % 60:02}s"
    return f"{whole}s"
