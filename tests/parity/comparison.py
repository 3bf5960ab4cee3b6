"""One number that says how far an output is from the reference's."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Comparison(NamedTuple):
    """Distance of an output to the reference's, and the largest that counts as equal.

    A tolerance of 0 is an exact comparison: the error is the number of rows that differ.
    """

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Return whether the output equals the reference's; NaN does not."""
        return self.error <= self.tolerance


def assert_equal_to_reference(comparisons: Iterable[Comparison]) -> None:
    """Assert that there are comparisons and that each is ok."""
    comparisons = list(comparisons)
    assert comparisons, "nothing was compared"
    bad = [comparison for comparison in comparisons if not comparison.ok]
    assert not bad, bad


def _as_pair(found, expected, dtype=None):
    found, expected = np.asarray(found, dtype), np.asarray(expected, dtype)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return found, expected


def relative_error(found, expected) -> float:
    """Largest difference over the largest number of ``expected``."""
    found, expected = _as_pair(found, expected, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def largest_difference(found, expected) -> float:
    """Largest difference, in the unit of both."""
    found, expected = _as_pair(found, expected, np.float64)
    return float(np.abs(found - expected).max(initial=0.0))


def rows_that_differ(found, expected) -> int:
    """Number of rows (of the first axis) in which any number differs."""
    found, expected = _as_pair(found, expected)
    different = np.atleast_1d(found != expected)
    return int(different.reshape(len(different), -1).any(1).sum())
