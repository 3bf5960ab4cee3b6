"""Sampling orders: endless maps from global position to index of a record.

Each order is a ``grain.MapDataset``, and the index at a position is a pure function of seed and
position. So a run resumes from the number of records alone. ``Mixture.order`` is a further one.
"""

import sys
from collections.abc import Sequence

import grain
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


def shuffled_order(first: int, end: int, seed: int) -> grain.MapDataset[int]:
    """Return the order of the records from ``first`` to before ``end``, shuffled in every epoch."""
    return grain.MapDataset.range(first, end).seed(seed).shuffle().repeat()


def epoch_order(
    num_records: int,
    *,
    seed: int,
    batch_size: int,
    repeats: Float[np.ndarray, " N"] | None = None,
    buckets: Int[np.ndarray, " N"] | None = None,
) -> grain.MapDataset[int]:
    """Return an order with repeated records, and batches of one bucket.

    With ``buckets``, each global batch (``batch_size`` positions from a multiple of it) holds one
    bucket. The incomplete batches of an epoch are joined by ascending bucket, so at most one batch
    for each pair of neighbouring buckets is mixed. A batch may span two epochs; both fill it with
    the most common bucket.

    Args:
        num_records: N.
        seed: seed of every draw.
        batch_size: size of the global batch.
        repeats: samples of each record in an epoch. A fraction is rounded anew in every epoch, up
            with the probability of the fraction. None: one sample.
        buckets: bucket of each record, such as ``Buckets.numbers``. None: all records are alike.

    Raises:
        ValueError: no records.
    """
    epochs = _Epochs(num_records, seed, batch_size, repeats, buckets)
    return grain.MapDataset.select_from_datasets([grain.MapDataset.range(num_records)], epochs)


class _Epochs(grain.transforms.DatasetSelectionMap):
    """Selection map of ``epoch_order``.

    Grain's own ``shuffle`` and ``repeat`` do not suffice: all epochs of ``repeat`` have one length,
    while repeats are rounded anew in each, and no transformation of a ``MapDataset`` groups records
    by a property. A ``filter`` for each bucket would leave gaps that depend on the epoch, so the
    position of a batch would not give its records.
    """

    def __init__(
        self,
        num_records: int,
        seed: int,
        batch_size: int,
        repeats: Float[np.ndarray, " N"] | None,
        buckets: Int[np.ndarray, " N"] | None,
    ):
        if num_records < 1:
            raise ValueError("no records to order")
        self._num_records, self._seed, self._batch_size = num_records, seed, batch_size
        self._repeats, self._buckets = repeats, buckets
        # Threads share this object, so the caches are replaced, never changed: first positions of
        # the known epochs, and the last two arranged epochs as (number, indices). At the boundary
        # of two epochs, threads need both.
        self._starts: tuple[int, ...] = (0,)
        self._arranged: tuple[tuple[int, Int[np.ndarray, " _"]], ...] = ()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> tuple[int, int]:
        epoch, start = self._epoch_at(position)
        for known, indices in self._arranged:
            if known == epoch:
                return 0, int(indices[position - start])
        indices = self._arrange(epoch, start)
        self._arranged = (*self._arranged[-1:], (epoch, indices))
        return 0, int(indices[position - start])

    def _epoch_at(self, position: int) -> tuple[int, int]:
        """Return the epoch of a position and the epoch's first position."""
        if self._repeats is None:
            epoch = position // self._num_records
            return epoch, epoch * self._num_records
        starts = self._starts
        while starts[-1] <= position:
            starts = (*starts, starts[-1] + int(self._num_samples(len(starts) - 1).sum()))
        self._starts = starts
        epoch = int(np.searchsorted(starts, position, side="right")) - 1
        return epoch, starts[epoch]

    def _num_samples(self, epoch: int) -> Int[np.ndarray, " N"]:
        """Return the number of samples of each record in an epoch."""
        rng = np.random.default_rng((self._seed, epoch, 0))
        whole = np.floor(self._repeats)
        return (whole + (rng.random(len(whole)) < self._repeats - whole)).astype(np.int64)

    def _arrange(self, epoch: int, start: int) -> Int[np.ndarray, " _"]:
        indices = np.arange(self._num_records)
        if self._repeats is not None:
            indices = np.repeat(indices, self._num_samples(epoch))
        rng = np.random.default_rng((self._seed, epoch, 1))
        indices = rng.permutation(indices)
        if self._buckets is None:
            return indices
        # These records complete the batches shared with the previous and the next epoch.
        lead = min(-start % self._batch_size, len(indices))
        tail = (len(indices) - lead) % self._batch_size
        commonest = np.bincount(self._buckets).argmax()
        indices = indices[np.argsort(self._buckets[indices] != commonest, kind="stable")]
        first, last, indices = np.split(indices, [lead, lead + tail])
        batches, rest = [], []
        for bucket in np.unique(self._buckets[indices]):
            members = indices[self._buckets[indices] == bucket]
            whole = len(members) // self._batch_size * self._batch_size
            batches.append(members[:whole])
            rest.append(members[whole:])
        batches = np.concatenate([*batches, *rest, indices[:0]]).reshape(-1, self._batch_size)
        return np.concatenate([first, rng.permutation(batches).ravel(), last])
