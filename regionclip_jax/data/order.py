"""In which order records are visited: epochs of other lengths, batches of one kind of picture.

The index at a global position is a pure function of seed and position, so a run that resumes needs
no more than the number of records it has seen.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def repeat_factors(
    classes_of_images: Sequence[Int[np.ndarray, " _"]], num_classes: int, threshold: float
) -> Float[np.ndarray, " N"]:
    """Return how often each image comes in an epoch, for its rarest class.

    Source: docs/reference/training_detectors.md#sampler. A class that is in a share f of the images
    repeats them ``max(1, sqrt(threshold / f))`` times; an image follows its most repeated class.
    """
    counts = np.zeros(num_classes)
    for classes in classes_of_images:
        counts[np.unique(classes)] += 1
    share = np.maximum(counts, 1) / max(len(classes_of_images), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([of_class[c].max() if len(c) else 1.0 for c in classes_of_images])


class EpochOrder:
    """Global position -> index of a record, endless and picklable.

    With ``kinds`` the global batches, ``batch_size`` positions from a multiple of it on, hold one
    kind each, but for what is left of the kinds in an epoch: that is put together by ascending
    number, so at most one batch for each neighbouring pair of kinds is mixed. An epoch that does
    not begin or end with a batch shares one with its neighbour; there it has the commonest kind.

    Args:
        num_records: N.
        seed: of every draw.
        batch_size: of the global batch.
        repeats: visits of each record an epoch; fractions are rounded anew in every epoch, up with
            the probability of the fraction. None: one visit.
        kinds: number of the kind of each record, such as the canvas it needs. None: all are alike.
    """

    def __init__(
        self,
        num_records: int,
        *,
        seed: int,
        batch_size: int,
        repeats: Float[np.ndarray, " N"] | None = None,
        kinds: Int[np.ndarray, " N"] | None = None,
    ):
        if num_records < 1:
            raise ValueError("no records to order")
        self._num_records, self._seed, self._batch_size = num_records, seed, batch_size
        self._repeats, self._kinds = repeats, kinds
        # Threads share this object, so what they have computed is replaced, never changed: first
        # positions of the epochs known so far, and the last two epochs arranged, as (number,
        # indices): where one epoch follows another, threads ask for both.
        self._starts: tuple[int, ...] = (0,)
        self._arranged: tuple[tuple[int, Int[np.ndarray, " _"]], ...] = ()

    def __getitem__(self, position: int) -> int:
        epoch, start = self._epoch_at(position)
        for known, indices in self._arranged:
            if known == epoch:
                return int(indices[position - start])
        indices = self._arrange(epoch, start)
        self._arranged = (*self._arranged[-1:], (epoch, indices))
        return int(indices[position - start])

    def kinds_of_batch(self, number: int) -> set[int]:
        """The kinds in a global batch."""
        first = number * self._batch_size
        indices = [self[position] for position in range(first, first + self._batch_size)]
        return set(self._kinds[indices].tolist())

    def _epoch_at(self, position: int) -> tuple[int, int]:
        """The epoch of a position, and where it starts."""
        if self._repeats is None:
            epoch = position // self._num_records
            return epoch, epoch * self._num_records
        starts = self._starts
        while starts[-1] <= position:
            starts = (*starts, starts[-1] + int(self._visits(len(starts) - 1).sum()))
        self._starts = starts
        epoch = int(np.searchsorted(starts, position, side="right")) - 1
        return epoch, starts[epoch]

    def _visits(self, epoch: int) -> Int[np.ndarray, " N"]:
        """Of each record in an epoch."""
        rng = np.random.default_rng((self._seed, epoch, 0))
        whole = np.floor(self._repeats)
        return (whole + (rng.random(len(whole)) < self._repeats - whole)).astype(np.int64)

    def _arrange(self, epoch: int, start: int) -> Int[np.ndarray, " _"]:
        indices = np.arange(self._num_records)
        if self._repeats is not None:
            indices = np.repeat(indices, self._visits(epoch))
        rng = np.random.default_rng((self._seed, epoch, 1))
        indices = rng.permutation(indices)
        if self._kinds is None:
            return indices
        # What completes the last batch of the epoch before, and what begins the one after.
        lead = min(-start % self._batch_size, len(indices))
        tail = (len(indices) - lead) % self._batch_size
        commonest = np.bincount(self._kinds).argmax()
        indices = indices[np.argsort(self._kinds[indices] != commonest, kind="stable")]
        first, last, indices = np.split(indices, [lead, lead + tail])
        batches, rest = [], []
        for kind in np.unique(self._kinds[indices]):
            own = indices[self._kinds[indices] == kind]
            whole = len(own) // self._batch_size * self._batch_size
            batches.append(own[:whole])
            rest.append(own[whole:])
        batches = np.concatenate([*batches, *rest, indices[:0]]).reshape(-1, self._batch_size)
        return np.concatenate([first, rng.permutation(batches).ravel(), last])
