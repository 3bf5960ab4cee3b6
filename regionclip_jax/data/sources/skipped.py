"""Count skipped records and skipped entries of a source, and refuse too many."""

import collections
from collections.abc import Sequence

from absl import logging

_NUM_NAMED = 3
_TEXTS_IN_ERROR = 3


class TooManyFaults(RuntimeError):
    """The share of skipped records exceeds the limit of the recipe."""


class FaultCounter:
    """Counter of skipped records; a few broken files are normal, a wrong path is not.

    Args:
        limit_fraction: share of the records that may be skipped.
        minimum: number of skipped records below which the share is not checked, so that one broken
            file among the first records stops nothing.
        num_logged: number of texts to log; later ones are only counted.
    """

    def __init__(self, limit_fraction: float, minimum: int, num_logged: int = 20):
        if not 0 <= limit_fraction <= 1:
            raise ValueError(f"limit_fraction must be within 0 and 1, found {limit_fraction}")
        self._limit_fraction = limit_fraction
        self._minimum = minimum
        self._num_logged = num_logged
        self._last: collections.deque[str] = collections.deque(maxlen=_TEXTS_IN_ERROR)
        self.num_records = 0
        self.num_faults = 0

    def add(self, num_records: int, faults: Sequence[str]) -> None:
        """Count one batch.

        Args:
            num_records: rows of the batch, including skipped records.
            faults: texts of the skipped records.

        Raises:
            TooManyFaults: at least ``minimum`` skipped records, and their share exceeds the limit.
        """
        self.num_records += num_records
        for text in faults:
            self.num_faults += 1
            self._last.append(text)
            if self.num_faults <= self._num_logged:
                logging.warning("skipped a record: %s", text)
            if self.num_faults == self._num_logged:
                logging.warning("further skipped records are counted but not logged")
        allowed = self._limit_fraction * self.num_records
        if self.num_faults >= max(1, self._minimum) and self.num_faults > allowed:
            last = "\n  ".join(self._last)
            raise TooManyFaults(
                f"{self.num_faults} of {self.num_records} records could not be used, more than the "
                f"limit of {self._limit_fraction:.2%}. Repair the data or raise the limit. "
                f"The last ones:\n  {last}"
            )


class LeftOut:
    """Counter of the skipped entries of one file or folder.

    Attributes:
        report: ``{what}_{kind}`` -> count.
        named: ``{what}_{kind}`` -> first few names.

    Args:
        what: counted entries, in the plural: ``"images"``.
    """

    def __init__(self, what: str):
        self._what = what
        self.report: collections.Counter[str] = collections.Counter()
        self.named: dict[str, list[str]] = {}

    def add(self, kind: str, name: object) -> None:
        """Count one entry of a kind, such as ``"missing"``; ``name`` is for messages."""
        key = f"{self._what}_{kind}"
        self.report[key] += 1
        first = self.named.setdefault(key, [])
        if len(first) < _NUM_NAMED:
            first.append(str(name)[:200])

    def require_few(
        self, where: object, total: int, max_skipped_fraction: float, remedy: str
    ) -> None:
        """Refuse too many skipped entries: a few are normal, a wrong file is not.

        Args:
            where: the file or folder, for the error.
            total: number of entries, including skipped ones.
            max_skipped_fraction: share of the entries that may be skipped; never all of them.

        Raises:
            ValueError: more entries are skipped.
        """
        lost = self.report.total()
        if not lost or (lost < total and lost <= max_skipped_fraction * total):
            return
        raise ValueError(
            f"{where}: {lost} of {total} {self._what} cannot be used, more than a "
            f"max_skipped_fraction of {max_skipped_fraction:.2%} allows: "
            f"{describe(self.report, self.named)}; {remedy}, or "
            "raise max_skipped_fraction to go on without them"
        )


def describe(report: dict[str, int], named: dict[str, list[str]]) -> str:
    """Format counts as a line: ``images 12, images missing 2 (a.jpg, b.jpg)``."""
    parts = []
    for key, count in report.items():
        examples = ""
        if first := named.get(key):
            examples = f" ({', '.join(first)}{', ...' if count > len(first) else ''})"
        parts.append(f"{key.replace('_', ' ')} {count}{examples}")
    return ", ".join(parts)
