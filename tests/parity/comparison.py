"""Distance of an output from that of the reference, as one number."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Comparison(NamedTuple):
    """Error of an output against the reference, and the largest error that counts as equal.

    A tolerance of 0 is an exact comparison, with the number of different rows as error.
    """

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Return True if the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


def assert_equal_to_reference(comparisons: Iterable[Comparison]) -> None:
    """Assert that there is at least one comparison and that all are ok."""
    comparisons = list(comparisons)
    assert comparisons, "nothing was compared"
    bad = [comparison for comparison in comparisons if not comparison.ok]
    assert not bad, bad


def _as_pair(actual, expected, dtype=None):
    actual, expected = np.asarray(actual, dtype), np.asarray(expected, dtype)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return actual, expected


def relative_error(actual, expected) -> float:
    """Return the largest difference divided by the largest absolute value of ``expected``."""
    actual, expected = _as_pair(actual, expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def largest_difference(actual, expected) -> float:
    """Return the largest absolute difference, in the unit of both arrays."""
    actual, expected = _as_pair(actual, expected, np.float64)
    return float(np.abs(actual - expected).max(initial=0.0))


def rows_that_differ(actual, expected) -> int:
    """Return the number of rows (first axis) with any difference."""
    actual, expected = _as_pair(actual, expected)
    different = np.atleast_1d(actual != expected)
    return int(different.reshape(len(different), -1).any(1).sum())
