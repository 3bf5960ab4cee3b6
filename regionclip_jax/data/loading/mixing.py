"""Mixture of several sources with given shares.

The record at a position is a pure function of (seed, position). So a run resumes from the number
of records alone, and processes need no communication. Each source has its own shuffled epochs,
independent of the lengths of the others.
"""

import bisect
import itertools
import math
from collections.abc import Sequence

import grain
import numpy as np

from regionclip_jax.data.sources.records import ImageTextRecord, Source

# Shares are whole numbers of records in a window of this size, so they are exact in each window.
_WINDOW = 10_000


class Mixture:
    """Concatenated records of all sources; ``order`` samples them by their shares.

    Attributes:
        shares: records of each source within any ``sum(shares)`` consecutive positions of
            ``order``. Each is within one record of its weight's part of 10,000. Shares are then
            divided by their greatest common divisor: weights 3 and 1 have shares 3 and 1.

    Args:
        sources: sources of image-text records.
        weights: a number above 0 for each source; only their ratios matter.

    Raises:
        ValueError: no source, an empty one, a weight that is not above 0, or a weight whose share
            is below one record.
    """

    def __init__(self, sources: Sequence[Source[ImageTextRecord]], weights: Sequence[float]):
        if not sources or len(sources) != len(weights):
            raise ValueError(f"{len(sources)} sources and {len(weights)} weights: one weight each")
        if empty := [source for source in sources if not len(source)]:
            raise ValueError(f"{empty[0]!r} has no records: check its path and split")
        self._sources, self._weights = tuple(sources), tuple(float(weight) for weight in weights)
        self._starts = [0, *itertools.accumulate(len(source) for source in sources)]
        self.shares = _whole_shares(self._weights)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> ImageTextRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r} has {len(self)} records, asked for {index}")
        part = bisect.bisect_right(self._starts, index) - 1
        return self._sources[part][index - self._starts[part]]

    def order(self, seed: int, shuffle: bool = True) -> "MixtureOrder":
        """Return the sampling order.

        Args:
            seed: from 0 to 2**32 - 1.
            shuffle: shuffle each source in each of its epochs; False keeps the sources' orders.
        """
        visits = []
        for number, ends in enumerate(itertools.pairwise(self._starts)):
            # Grain adds the epoch to the seed, so consecutive seeds would share epochs.
            (own_seed,) = np.random.SeedSequence((seed, number)).generate_state(1)
            part = grain.MapDataset.range(*ends)
            visits.append((part.seed(int(own_seed)).shuffle() if shuffle else part).repeat())
        return MixtureOrder(visits, self.shares)

    def sizes(self) -> None:
        """Return None: batches of one canvas size would not keep the shares."""
        return None

    def __repr__(self) -> str:
        return f"Mixture({list(self._sources)!r}, {list(self._weights)!r})"


class MixtureOrder:
    """Map from position to index in a mixture, endless and picklable.

    The samples of a source are spread evenly over a window of ``sum(shares)`` positions. All
    windows are alike. (Grain's own mix rounds shares to a hundredth of the smallest.)

    Args:
        visits: sampling order of each source: sample number -> index.
        shares: samples of each source in a window.
    """

    def __init__(self, visits: Sequence[grain.MapDataset[int]], shares: Sequence[int]):
        self._visits, self._shares = tuple(visits), tuple(shares)
        # Sample i of n of a source comes at the fraction (i + 1/2) / n of the window.
        when = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
        by_time = np.argsort(when, kind="stable")
        self._sources = np.repeat(np.arange(len(shares)), shares)[by_time]
        self._turns = np.concatenate([np.arange(share) for share in shares])[by_time]

    def __getitem__(self, position: int) -> int:
        window, within = divmod(position, len(self._sources))
        source = self._sources[within]
        return self._visits[source][window * self._shares[source] + int(self._turns[within])]


def _whole_shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Return whole shares of the window by the largest remainder method."""
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights {list(weights)}: expected numbers above 0")
    exact = [weight / sum(weights) * _WINDOW for weight in weights]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for number in by_remainder[: _WINDOW - sum(shares)]:
        shares[number] += 1
    if not all(shares):
        raise ValueError(
            f"weights {list(weights)}: expected each to be at least 1 / {_WINDOW} of their sum; "
            "leave that source out or raise its weight"
        )
    divisor = math.gcd(*shares)
    return tuple(share // divisor for share in shares)
