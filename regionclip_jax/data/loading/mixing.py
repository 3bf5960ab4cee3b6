"""Mixture of several sources with given shares.

The record at a position is a pure function of (seed, position). So a run resumes from the number
of records alone, and processes need no communication. Each source has its own shuffled epochs,
independent of the lengths of the others.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from regionclip_jax.data.loading.order import shuffled_order
from regionclip_jax.data.sources.fingerprint import fingerprint
from regionclip_jax.data.sources.records import ImageTextRecord, Source, locate

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
        self._ends = list(itertools.accumulate(len(source) for source in sources))
        self.shares = _whole_shares(self._weights)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> ImageTextRecord:
        part, row = locate(self, self._ends, index)
        return self._sources[part][row]

    def order(self, seed: int) -> grain.MapDataset[int]:
        """Return the sampling order: each source shuffled in its own epochs, mixed by the shares.

        Args:
            seed: from 0 to 2**32 - 1.
        """
        orders = []
        for number, (first, end) in enumerate(itertools.pairwise([0, *self._ends])):
            # Grain adds the epoch to the seed, so consecutive seeds would share epochs.
            (own_seed,) = np.random.SeedSequence((seed, number)).generate_state(1)
            orders.append(shuffled_order(first, end, int(own_seed)))
        return grain.MapDataset.select_from_datasets(orders, _Windows(self.shares))

    def index_parts(self) -> Iterator[bytes]:
        """Yield the fingerprint of every source; see ``fingerprint``."""
        return (fingerprint(source).encode() for source in self._sources)

    def sizes(self) -> None:
        """Return None: batches of one canvas size would not keep the shares."""
        return None

    def __repr__(self) -> str:
        return f"Mixture({list(self._sources)!r}, {list(self._weights)!r})"


class _Windows(grain.transforms.DatasetSelectionMap):
    """Selection map that spreads the samples of each source evenly over a window.

    A window has ``sum(shares)`` positions, and all windows are alike. Grain's own ``mix`` does not
    suffice: it scales the smallest weight to 100 and truncates the others, so it mixes weights of 3
    and 1.999 as 150 to 100.

    Args:
        shares: samples of each source in a window.
    """

    def __init__(self, shares: Sequence[int]):
        self._shares = tuple(shares)
        # Sample i of n of a source comes at the fraction (i + 1/2) / n of the window.
        when = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
        by_time = np.argsort(when, kind="stable")
        self._sources = np.repeat(np.arange(len(shares)), shares)[by_time]
        self._samples = np.concatenate([np.arange(share) for share in shares])[by_time]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> tuple[int, int]:
        window, within = divmod(position, len(self._sources))
        source = int(self._sources[within])
        return source, window * self._shares[source] + int(self._samples[within])


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
