"""Order of visits: every record as often as asked, batches of one orientation, nothing to save."""

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.order import EpochOrder, repeat_factors


def visits(order, start, count):
    return [order[position] for position in range(start, start + count)]


@pytest.mark.property
@given(st.integers(1, 20), st.integers(0, 1000), st.integers(1, 6), st.booleans())
def test_an_epoch_visits_every_record_once_and_the_next_in_another_order(
    num_records, seed, batch_size, with_orientation
):
    upright = None
    if with_orientation:
        upright = np.random.default_rng(seed).random(num_records) < 0.4
    order = EpochOrder(num_records, seed=seed, batch_size=batch_size, upright=upright)
    first, second = (visits(order, e * num_records, num_records) for e in range(2))
    assert sorted(first) == sorted(second) == list(range(num_records))
    if num_records > 8:
        assert first != second


def test_batches_hold_one_orientation_until_an_epochs_rest():
    upright = np.arange(50) % 3 == 0
    order = EpochOrder(50, seed=3, batch_size=8, upright=upright)
    batches = np.array(visits(order, 0, 48)).reshape(-1, 8)
    mixed = [len(set(upright[batch])) > 1 for batch in batches]
    # 17 upright and 33 lying pictures fill two and four batches of eight; one of each is left.
    assert mixed == [False] * 6
    assert set(upright[visits(order, 48, 2)]) == {True, False}


def test_fractions_are_rounded_anew_in_every_epoch():
    repeats = np.array([1.0, 2.5, 1.25])
    order = EpochOrder(3, seed=0, batch_size=1, repeats=repeats)
    counts = collections.Counter(visits(order, 0, 4750))
    # A thousand epochs of 4.75 visits on average.
    for index, repeat in enumerate(repeats):
        assert counts[index] == pytest.approx(1000 * repeat, rel=0.05)


def test_a_position_says_the_same_whenever_and_wherever_it_is_asked():
    def make():
        return EpochOrder(
            7, seed=5, batch_size=2, repeats=np.linspace(1, 2, 7), upright=np.arange(7) < 3
        )

    expected = visits(make(), 0, 60)
    assert [make()[position] for position in reversed(range(60))] == expected[::-1]
    assert visits(pickle.loads(pickle.dumps(make())), 0, 60) == expected


def test_repeat_factors_follow_the_rarest_class_of_an_image():
    """spec: detector_eval 4.5, by hand: class 0 in all of 4 images, 1 in two, 2 in one."""
    images = [np.array(classes) for classes in ([0, 0], [0, 1], [0, 1, 2], [0])]
    found = repeat_factors(images, num_classes=4, threshold=0.75)
    np.testing.assert_allclose(found, [1, (0.75 / 0.5) ** 0.5, (0.75 / 0.25) ** 0.5, 1])


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no records"):
        EpochOrder(0, seed=0, batch_size=1)
