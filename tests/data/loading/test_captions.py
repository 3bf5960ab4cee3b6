import numpy as np
import pytest

from regionclip_jax.data.loading.captions import choose_caption, mentions_direction
from regionclip_jax.data.sources.records import ImageTextRecord, RecordError


def draws(record, count=200):
    return {choose_caption(record, np.random.default_rng(i), source="S") for i in range(count)}


def test_every_caption_is_drawn_except_blank_ones():
    assert draws(ImageTextRecord("k", b"", ("a", " \n", "b", ""))) == {"a", "b"}


def test_the_same_generator_draws_the_same_caption():
    record = ImageTextRecord("k", b"", tuple("abcdefgh"))
    first, second = (choose_caption(record, np.random.default_rng(5), source="S") for _ in "ab")
    assert first == second


def test_tags_are_shuffled_into_prompts_beside_the_captions():
    texts = draws(ImageTextRecord("k", b"", ("a caption",), ("red", "dog")))
    assert "a caption" in texts
    assert any("red dog" in text for text in texts) and any("dog red" in text for text in texts)


def test_a_long_caption_is_truncated():
    (text,) = draws(ImageTextRecord("k", b"", ("word " * 20_000,)), count=1)
    assert text.startswith("word word") and len(text) == 10_000


@pytest.mark.parametrize("captions", [(), ("", "  "), ("\0", "\x01\x02 \u200b")])
def test_a_record_without_words_is_a_record_error(captions):
    with pytest.raises(RecordError, match="S, record k: .*caption"):
        choose_caption(ImageTextRecord("k", b"", captions), np.random.default_rng(0), source="S")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A cat LEFT of a dog.", True),
        ("a left-handed pitcher", True),
        ("the rightmost bus", True),
        ("looks to his right", True),
        ("leftover pizza under bright light", False),
        ("an upright piano", False),
    ],
)
def test_captions_with_left_or_right_are_detected(caption, expected):
    assert mentions_direction(caption) == expected
