"""Sampling order of records: repeated records and batches of one kind of image.

The index at a global position is a pure function of seed and position. So a run resumes from the
number of records alone.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def repeat_factors(
    classes_of_images: Sequence[Int[np.ndarray, " _"]], num_classes: int, threshold: float
) -> Float[np.ndarray, " N"]:
    """Return the expected number of samples of each image in an epoch, for its rarest class.

    Source: docs/reference/training_detectors.md#sampler. A class in a share f of the images repeats
    them ``max(1, sqrt(threshold / f))`` times; an image follows its most repeated class.
    """
    counts = np.zeros(num_classes)
    for classes in classes_of_images:
        counts[np.unique(classes)] += 1
    share = np.maximum(counts, 1) / max(len(classes_of_images), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([of_class[c].max() if len(c) else 1.0 for c in classes_of_images])


class EpochOrder:
    """Map from global position to index of a record, endless and picklable.

    With ``kinds``, each global batch (``batch_size`` positions from a multiple of it) holds one
    kind. The incomplete batches of an epoch are joined by ascending kind, so at most one batch for
    each pair of neighbouring kinds is mixed. A batch may span two epochs; both fill it with the
    most common kind.

    Args:
        num_records: N.
        seed: seed of every draw.
        batch_size: size of the global batch.
        repeats: samples of each record in an epoch. A fraction is rounded anew in every epoch, up
            with the probability of the fraction. None: one sample.
        kinds: kind of each record, such as the index of its canvas. None: all records are alike.
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
        # Threads share this object, so the caches are replaced, never changed: first positions of
        # the known epochs, and the last two arranged epochs as (number, indices). At the boundary
        # of two epochs, threads need both.
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
        """Return the kinds in a global batch."""
        first = number * self._batch_size
        indices = [self[position] for position in range(first, first + self._batch_size)]
        return set(self._kinds[indices].tolist())

    def _epoch_at(self, position: int) -> tuple[int, int]:
        """Return the epoch of a position and the epoch's first position."""
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
        """Return the number of samples of each record in an epoch."""
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
        # These records complete the batches shared with the previous and the next epoch.
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
