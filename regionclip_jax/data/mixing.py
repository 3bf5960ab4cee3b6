"""Several sources as one stream with given shares.

Which source and which of its records comes at a position is a pure function of (seed, position), so
a run resumes from the number of records alone, and processes agree without talking. Each source is
visited in its own shuffled epochs, whatever the lengths of the others.
"""

import bisect
import itertools
import math
from collections.abc import Sequence

import grain
import numpy as np

from regionclip_jax.data.records import ImageTextRecord, Source

# Shares are whole numbers of this many records, so that they are met exactly within as many.
_WINDOW = 10_000


class Mixture:
    """The records of all sources, one source after the other; ``order`` gives them their shares.

    Attributes:
        shares: records of each source within any ``sum(shares)`` consecutive positions of
            ``order``. Each is within one record of its weight's part of 10,000 (then all are
            divided by what they have in common: weights 3 and 1 have shares 3 and 1).

    Args:
        sources: of image-text records.
        weights: one above 0 for each source; only their ratios matter.

    Raises:
        ValueError: no source, an empty one, a weight that is not above 0, or one so small that its
            share is no record.
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
        """Which record comes when.

        Args:
            seed: from 0 to 2**32 - 1.
            shuffle: each source anew in each of its epochs; False keeps the sources' orders.
        """
        visits = []
        for number, ends in enumerate(itertools.pairwise(self._starts)):
            # Grain adds the epoch to the seed, so neighbouring seeds would repeat each other.
            (own_seed,) = np.random.SeedSequence((seed, number)).generate_state(1)
            part = grain.MapDataset.range(*ends)
            visits.append((part.seed(int(own_seed)).shuffle() if shuffle else part).repeat())
        return MixtureOrder(visits, self.shares)

    def sizes(self) -> None:
        """Sizes of pictures: not given, as batches of one size would not keep the shares."""
        return None

    def __repr__(self) -> str:
        return f"Mixture({list(self._sources)!r}, {list(self._weights)!r})"


class MixtureOrder:
    """Position -> index in a mixture, endless and picklable.

    Turns are spread evenly over a window of ``sum(shares)`` positions, and every window is alike.
    (Grain's own mix rounds shares to a hundredth of the smallest.)

    Args:
        visits: of each source, visit -> index.
        shares: turns of each source in a window.
    """

    def __init__(self, visits: Sequence[grain.MapDataset[int]], shares: Sequence[int]):
        self._visits, self._shares = tuple(visits), tuple(shares)
        # Turn i of a source that has n comes when (i + 1/2) / n of the window is over.
        when = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
        by_time = np.argsort(when, kind="stable")
        self._sources = np.repeat(np.arange(len(shares)), shares)[by_time]
        self._turns = np.concatenate([np.arange(share) for share in shares])[by_time]

    def __getitem__(self, position: int) -> int:
        window, within = divmod(position, len(self._sources))
        source = self._sources[within]
        return self._visits[source][window * self._shares[source] + int(self._turns[within])]


def _whole_shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Weights as whole parts of the window, by largest remainders."""
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
