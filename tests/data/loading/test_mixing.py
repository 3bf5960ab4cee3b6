import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.loading.examples import Shard
from regionclip_jax.data.loading.mixing import Mixture
from regionclip_jax.data.loading.pipeline import image_text_batches
from regionclip_jax.data.sources.records import ImageTextRecord
from regionclip_jax.settings import CaptionDataSettings
from regionclip_jax.text.tokenizer import TokenizerSource

# Grain shuffles sets of a few records hundreds of times slower than large sets.
LENGTHS = (130, 50, 110)
WEIGHTS = (3, 1, 2.5)


class Numbers:
    """Source whose keys are its name and the number of the record."""

    def __init__(self, name, length, image=b""):
        self.name, self.length, self.image = name, length, image

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return ImageTextRecord(f"{self.name}{index}", self.image, (f"{self.name} {index}",))

    def __repr__(self):
        return f"Numbers({self.name!r})"


def mixture(lengths=LENGTHS, weights=WEIGHTS, image=b""):
    sources = [Numbers("abcdef"[i], length, image) for i, length in enumerate(lengths)]
    return Mixture(sources, weights)


def samples(mixed, positions, seed=0):
    """Return (source, number) at each position."""
    order = mixed.order(seed)
    keys = [mixed[order[position]].key for position in positions]
    return [(key[0], int(key[1:])) for key in keys]


def test_a_mixture_indexes_the_records_of_its_sources_in_sequence():
    mixed = mixture((2, 1, 3))
    assert [mixed[i].key for i in range(len(mixed))] == ["a0", "a1", "b0", "c0", "c1", "c2"]
    assert repr(mixed) == "Mixture([Numbers('a'), Numbers('b'), Numbers('c')], [3.0, 1.0, 2.5])"
    with pytest.raises(IndexError, match="has 6 records, asked for 6"):
        mixed[6]


@pytest.mark.property
@given(
    # The weights add up to 100, so that a window has at most 100 samples.
    st.lists(st.integers(1, 19), max_size=5).map(lambda few: [*few, 100 - sum(few)]),
    st.integers(0, 10**9),
    st.integers(0, 2**32 - 1),
)
def test_any_window_has_the_exact_proportions_of_all_sources(weights, first, seed):
    mixed = mixture([500] * len(weights), weights)
    window = sum(mixed.shares)
    order = mixed.order(seed)
    sources = [order[first + i] // 500 for i in range(window)]
    counts = np.bincount(sources, minlength=len(weights)).tolist()
    assert counts == list(mixed.shares)
    wanted = np.array(weights) / sum(weights) * window
    assert np.abs(counts - wanted).max() < 1
    # Every prefix of the window is close to the proportions too.
    seen = np.cumsum(np.eye(len(weights))[[order[i] // 500 for i in range(window)]], axis=0)
    spread = np.arange(1, window + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(seen - spread).max() <= 0.5 + len(weights) / 2


@pytest.mark.property
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6))
def test_shares_are_within_one_of_ten_thousand_of_the_weights(weights):
    if min(weights) < sum(weights) / 5000:
        return
    shares = np.array(mixture([1] * len(weights), weights).shares)
    wanted = np.array(weights) / sum(weights)
    assert np.abs(shares / shares.sum() - wanted).max() < 1 / 10_000


def test_every_short_range_is_close_to_the_proportions():
    mixed = mixture((500, 500), (3, 1))
    assert mixed.shares == (3, 1)
    names = "".join(name for name, _ in samples(mixed, range(40)))
    assert {names[i : i + 4].count("b") for i in range(37)} == {1}


def test_each_source_has_separate_epochs():
    by_source = {name: [] for name in "abc"}
    for name, number in samples(mixture(), range(1000)):
        by_source[name].append(number)
    for name, length in zip("abc", LENGTHS, strict=True):
        numbers = by_source[name]
        epochs = [numbers[i : i + length] for i in range(0, len(numbers) - length, length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs) > 2


def test_sources_of_equal_length_are_shuffled_differently():
    seen = {name: [] for name in "ab"}
    for name, number in samples(mixture((90, 90), (1, 1)), range(4 * 180)):
        seen[name].append(number)
    epochs = {n: {tuple(v[i : i + 90]) for i in range(0, 360, 90)} for n, v in seen.items()}
    assert not epochs["a"] & epochs["b"]


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ((), (), "0 sources"),
        ((2, 2), (1,), "2 sources and 1 weights"),
        ((2, 0), (1, 1), r"Numbers\('b'\) has no records"),
        ((2, 2), (1, 0), "expected numbers above 0"),
        ((2, 2), (1, -1), "expected numbers above 0"),
        ((2, 2), (1, float("nan")), "expected numbers above 0"),
        ((2, 2), (1, 1e-6), "at least 1 / 10000"),
    ],
)
def test_invalid_mixtures_are_refused(lengths, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(lengths, weights)


def stream(image, count, **changes):
    arguments = {
        "short_sides": None,
        "max_long_side": None,
        "canvas_sizes": ((16, 16),),
        "num_threads": 2,
    }
    how = {"tokenizer": TokenizerSource("clip"), "seed": 7, "start_record": 0}
    how |= {name: changes.pop(name) for name in how if name in changes}
    shard = Shard(4, changes.pop("process_index", 0), changes.pop("process_count", 1))
    settings = CaptionDataSettings(**arguments | changes)
    batches = image_text_batches(mixture(image=image), settings, shard, **how)
    return [batch for batch, _ in itertools.islice(batches, count)]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for name in ("images", "sizes", "tokens", "mask"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_resumed_stream_equals_an_uninterrupted_one(encode_image):
    image = encode_image(0)
    whole = stream(image, 12)
    for start in (4, 20, 44):
        resumed = stream(image, 12 - start // 4, start_record=start)
        assert_same(resumed, whole[start // 4 :])


def test_several_processes_load_the_batches_of_one_process(encode_image):
    image = encode_image(0)
    parts = [stream(image, 6, process_index=i, process_count=2) for i in range(2)]
    for batch, *parts_of_batch in zip(stream(image, 6), *parts, strict=True):
        for name in ("images", "sizes", "tokens", "mask"):
            joined = np.concatenate([getattr(part, name) for part in parts_of_batch])
            np.testing.assert_array_equal(getattr(batch, name), joined)
