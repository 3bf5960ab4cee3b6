"""Sampling order: requested repeats, batches of one bucket, and no state."""

import collections
import concurrent.futures
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.loading.order import _Epochs, epoch_order, repeat_factors


def samples(order, start, count):
    return [order[position] for position in range(start, start + count)]


def random_buckets(num_records, num_buckets, seed):
    rng = np.random.default_rng(seed)
    return rng.choice(num_buckets, num_records, p=rng.dirichlet(np.ones(num_buckets)))


@pytest.mark.property
@given(st.integers(1, 20), st.integers(0, 1000), st.integers(1, 6), st.integers(0, 4))
def test_an_epoch_samples_every_record_once_and_the_next_in_another_order(
    num_records, seed, batch_size, num_buckets
):
    buckets = random_buckets(num_records, num_buckets, seed) if num_buckets else None
    order = epoch_order(num_records, seed=seed, batch_size=batch_size, buckets=buckets)
    first, second = (samples(order, e * num_records, num_records) for e in range(2))
    assert sorted(first) == sorted(second) == list(range(num_records))
    if num_records > 10:
        assert first != second


@pytest.mark.property
@given(
    st.integers(1, 60), st.integers(0, 1000), st.integers(1, 8), st.integers(1, 4), st.booleans()
)
def test_batches_have_one_bucket_except_the_remainder_of_an_epoch(
    num_records, seed, batch_size, num_buckets, repeated
):
    """Every epoch has at most one mixed batch for each pair of neighbouring buckets."""
    buckets = random_buckets(num_records, num_buckets, seed)
    repeats = np.random.default_rng(seed).uniform(1, 2, num_records) if repeated else None
    order = epoch_order(
        num_records, seed=seed, batch_size=batch_size, repeats=repeats, buckets=buckets
    )
    selection = _Epochs(num_records, seed, batch_size, repeats, buckets)
    enough = np.bincount(buckets).max() >= 2 * batch_size
    mixed_in_epoch = collections.Counter()
    for number in range(5 * num_records // batch_size):
        first, last = number * batch_size, (number + 1) * batch_size - 1
        in_batch = buckets[samples(order, first, batch_size)]
        epochs = {selection._epoch_at(position)[0] for position in (first, last)}
        if len(epochs) == 2:
            # A batch across two epochs takes the largest bucket if it has enough records.
            assert len(set(in_batch)) == 1 or not enough
        else:
            mixed_in_epoch[epochs.pop()] += len(set(in_batch)) > 1
    assert max(mixed_in_epoch.values(), default=0) < num_buckets


def test_the_remainder_of_an_epoch_is_batched_by_similar_shapes():
    """8 landscape, 33 square and 8 portrait images in batches of six: buckets 0, 1 and 2."""
    buckets = np.repeat([0, 1, 2], [8, 33, 8])
    order = epoch_order(49, seed=3, batch_size=6, buckets=buckets)

    def buckets_of_batch(number):
        return frozenset(buckets[samples(order, 6 * number, 6)].tolist())

    counts = collections.Counter(buckets_of_batch(n) for n in range(8))
    # 32 square images fill five batches and leave two. The other two buckets leave two each. One
    # square image starts the batch that the next epoch completes.
    assert counts == {
        frozenset({0}): 1,
        frozenset({1}): 5,
        frozenset({2}): 1,
        frozenset({0, 1, 2}): 1,
    }
    assert buckets_of_batch(8) == {1}


def test_fractional_repeats_are_rounded_randomly_in_every_epoch():
    repeats = np.array([1.0, 2.5, 1.25])
    order = epoch_order(3, seed=0, batch_size=1, repeats=repeats)
    counts = collections.Counter(samples(order, 0, 4750))
    # These are a thousand epochs with 4.75 samples on average.
    for index, repeat in enumerate(repeats):
        assert counts[index] == pytest.approx(1000 * repeat, rel=0.05)


def test_the_sample_at_a_position_depends_on_nothing_else():
    def make():
        return epoch_order(
            7, seed=5, batch_size=2, repeats=np.linspace(1, 2, 7), buckets=np.arange(7) // 3
        )

    expected = samples(make(), 0, 60)
    assert [make()[position] for position in reversed(range(60))] == expected[::-1]
    assert samples(pickle.loads(pickle.dumps(make())), 0, 60) == expected


def test_threads_that_share_an_order_get_the_samples_of_one_thread():
    def make():
        return epoch_order(
            40, seed=5, batch_size=4, repeats=np.linspace(1, 2, 40), buckets=np.arange(40) % 3
        )

    expected, shared = samples(make(), 0, 3000), make()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(shared.__getitem__, range(3000))) == expected


def test_repeat_factors_follow_the_rarest_class_of_an_image():
    """docs/reference/training_detectors.md#sampler: class 0 in 4 images, 1 in two, 2 in one."""
    images = [np.array(classes) for classes in ([0, 0], [0, 1], [0, 1, 2], [0])]
    factors = repeat_factors(images, num_classes=4, threshold=0.75)
    np.testing.assert_allclose(factors, [1, (0.75 / 0.5) ** 0.5, (0.75 / 0.25) ** 0.5, 1])


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no records"):
        epoch_order(0, seed=0, batch_size=1)
