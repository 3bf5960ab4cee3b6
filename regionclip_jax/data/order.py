"""In which order records are visited: epochs of other lengths, batches of one orientation.

The index at a global position is a pure function of seed and position, so a run that resumes needs
no more than the number of records it has seen.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def repeat_factors(
    classes_of_images: Sequence[Int[np.ndarray, " _"]], num_classes: int, threshold: float
) -> Float[np.ndarray, " N"]:
    """How often each image comes in an epoch, for its rarest class (spec: detector_eval 4.5).

    A class that is in a share f of the images repeats them ``max(1, sqrt(threshold / f))`` times;
    an image follows its most repeated class.
    """
    counts = np.zeros(num_classes)
    for classes in classes_of_images:
        counts[np.unique(classes)] += 1
    share = np.maximum(counts, 1) / max(len(classes_of_images), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([of_class[c].max() if len(c) else 1.0 for c in classes_of_images])


class EpochOrder:
    """Global position -> index of a record, endless and picklable.

    Args:
        num_records: N.
        seed: of every draw.
        batch_size: of the global batch; with ``upright`` each holds one orientation.
        repeats: visits of each record an epoch; fractions are rounded anew in every epoch, up with
            the probability of the fraction. None: one visit.
        upright: orientation of each record. An epoch's last batches, of what is left of both
            orientations, may be mixed, so that nothing is left out.
    """

    def __init__(
        self,
        num_records: int,
        *,
        seed: int,
        batch_size: int,
        repeats: Float[np.ndarray, " N"] | None = None,
        upright: Bool[np.ndarray, " N"] | None = None,
    ):
        if num_records < 1:
            raise ValueError("no records to order")
        self._num_records, self._seed, self._batch_size = num_records, seed, batch_size
        self._repeats, self._upright = repeats, upright
        # First positions of the epochs known so far, and the epoch at hand.
        self._starts = [0]
        self._epoch, self._indices = -1, np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> int:
        if self._repeats is None:
            epoch, within = divmod(position, self._num_records)
        else:
            while self._starts[-1] <= position:
                epoch = len(self._starts) - 1
                self._starts.append(self._starts[-1] + int(self._visits(epoch).sum()))
            epoch = int(np.searchsorted(self._starts, position, side="right")) - 1
            within = position - self._starts[epoch]
        # Threads share this object: what one of them computes is used as a whole or not at all.
        known, indices = self._epoch, self._indices
        if known != epoch:
            indices = self._arrange(epoch)
            self._epoch, self._indices = -1, indices
            self._epoch = epoch
        return int(indices[within])

    def _visits(self, epoch: int) -> Int[np.ndarray, " N"]:
        """Of each record in an epoch."""
        rng = np.random.default_rng((self._seed, epoch, 0))
        whole = np.floor(self._repeats)
        return (whole + (rng.random(len(whole)) < self._repeats - whole)).astype(np.int64)

    def _arrange(self, epoch: int) -> Int[np.ndarray, " _"]:
        indices = np.arange(self._num_records)
        if self._repeats is not None:
            indices = np.repeat(indices, self._visits(epoch))
        rng = np.random.default_rng((self._seed, epoch, 1))
        indices = rng.permutation(indices)
        if self._upright is None:
            return indices
        batches, rest = [], []
        for kind in (False, True):
            own = indices[self._upright[indices] == kind]
            whole = len(own) // self._batch_size * self._batch_size
            batches += list(own[:whole].reshape(-1, self._batch_size))
            rest.append(own[whole:])
        batches = [batches[i] for i in rng.permutation(len(batches))]
        return np.concatenate([*batches, rng.permutation(np.concatenate(rest))])
