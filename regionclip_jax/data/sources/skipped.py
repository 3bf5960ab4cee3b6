"""Count skipped records and skipped entries of a source, and refuse too many."""

import collections
from collections.abc import Sequence

from absl import logging

from regionclip_jax.settings import UserError

_NUM_NAMED = 3
_NUM_LOGGED = 20
_TEXTS_IN_ERROR = 3


class TooManySkipped(UserError):
    """The share of skipped records exceeds the limit of the recipe."""


class SkipCounter:
    """Counter of skipped records; a few broken files are normal, a wrong path is not.

    Args:
        max_fraction: share of the records that may be skipped.
        minimum: number of skipped records below which the share is not checked, so that one broken
            file among the first records stops nothing.
    """

    def __init__(self, max_fraction: float, minimum: int):
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_skipped_fraction must be within 0 and 1, found {max_fraction}")
        self._max_fraction = max_fraction
        self._minimum = minimum
        self._last: collections.deque[str] = collections.deque(maxlen=_TEXTS_IN_ERROR)
        self.num_records = 0
        self.num_skipped = 0

    def add(self, num_records: int, texts: Sequence[str]) -> None:
        """Count one batch, and log the first skipped records.

        Args:
            num_records: rows of the batch, including skipped records.
            texts: texts of the skipped records.

        Raises:
            TooManySkipped: at least ``minimum`` skipped records, and their share exceeds the limit.
        """
        self.num_records += num_records
        for text in texts:
            self.num_skipped += 1
            self._last.append(text)
            if self.num_skipped <= _NUM_LOGGED:
                logging.warning("skipped a record: %s", text)
            if self.num_skipped == _NUM_LOGGED:
                logging.warning("further skipped records are counted but not logged")
        allowed = self._max_fraction * self.num_records
        if self.num_skipped >= max(1, self._minimum) and self.num_skipped > allowed:
            last = "\n  ".join(self._last)
            raise TooManySkipped(
                f"{self.num_skipped} of {self.num_records} records were skipped, more than the "
                f"limit of {self._max_fraction:.2%}. Repair the data or raise the limit. "
                f"The last ones:\n  {last}"
            )


class SkippedEntries:
    """Counter of the skipped entries of one file or folder, by kind.

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
        skipped = self.report.total()
        if not skipped or (skipped < total and skipped <= max_skipped_fraction * total):
            return
        raise ValueError(
            f"{where}: {skipped} of {total} {self._what} cannot be used, more than a "
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
