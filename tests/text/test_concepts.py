import collections
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.extras import MissingExtra
from regionclip_jax.text import concepts
from regionclip_jax.text.concepts import (
    ConceptCounts,
    choose_concepts,
    count_concepts,
    write_concepts,
)

CAPTIONS = [
    "A woman hits a tennis ball with her tennis racket.",
    "Two women and a man are holding tennis rackets.",
    "A couple of dogs sit in front of a fire hydrant.",
    "A photo of a cup of coffee on a wooden table.",
    "The cup is blue, and a cup is a cup.",
    "A man wearing black pants and a hat.",
    "A table with two bananas and a banana on it.",
    "Three zebras are standing on top of a hill.",
]


def pool(captions, min_count=1, phrases="compounds", **lists) -> dict[str, int]:
    return dict(choose_concepts(count_concepts(captions, phrases=phrases), min_count, **lists))


def test_nouns_and_compounds_are_counted_once_a_caption_in_the_singular():
    result = pool(CAPTIONS)
    for name, count in {
        "woman": 2, "man": 2, "tennis racket": 2, "racket": 2, "tennis ball": 1, "dog": 1,
        "fire hydrant": 1, "hydrant": 1, "cup": 2, "coffee": 1, "table": 2, "hat": 1,
        "hill": 1, "zebra": 1, "banana": 1,
    }.items():  # fmt: skip
        assert result[name] == count, name
    assert not {"tennis", "women", "rackets", "two", "three", "her", "blue"} & result.keys()


def test_stopped_and_added_names_are_compared_as_the_tokenizer_reads_them():
    result = pool(
        CAPTIONS, min_count=2, stop=("Woman", "tennis  racket"), additions=("Zebra", "TV")
    )
    assert not {"woman", "tennis racket"} & result.keys()
    assert result["zebra"] == 1 and result["TV"] == 0 and "Zebra" not in result
    assert "man" in result


def test_nouns_only_and_nouns_with_adjectives_are_other_choices():
    caption = ["a wooden spice rack"]
    assert pool(caption, phrases="nouns") == {"rack": 1}
    assert pool(caption) == {"rack": 1, "spice rack": 1}
    assert pool(caption, phrases="adjectives") == {
        "rack": 1, "spice rack": 1, "wooden spice rack": 1,
    }  # fmt: skip


def test_words_of_quantities_positions_and_images_are_no_concepts():
    assert not {"couple", "front", "photo", "top"} & pool(CAPTIONS).keys()


def test_a_container_is_a_concept_if_it_also_occurs_without_of():
    assert "cup" in pool(CAPTIONS)
    assert "cup" not in pool(["a cup of coffee", "a cup of tea", "a cup"])


def test_a_word_that_is_rare_in_the_singular_keeps_its_plural():
    glasses = ["a woman wearing sunglasses"] * 20
    assert pool(glasses) == {"sunglasses": 20, "woman": 20}
    assert "sunglass" in pool([*glasses, "a sunglass and a sunglass"])
    assert "sunglass" in pool(glasses[:19])  # too few captions to decide
    assert "black pants" in pool(["black pants"], phrases="adjectives")


def test_a_word_that_is_rarely_a_noun_is_dropped_as_a_tagger_error():
    counts = ConceptCounts(
        captions=collections.Counter({"sitting": 5, "orange": 20}),
        spellings=collections.Counter({("sitting", "sitting"): 5, ("orange", "orange"): 20}),
        words=collections.Counter({"sitting": 100, "orange": 100}),
        nouns=collections.Counter({"sitting": 5, "orange": 20}),
    )
    assert choose_concepts(counts, 1) == [("orange", 20)]


def test_concepts_are_sorted_by_count_and_then_by_name():
    chosen = choose_concepts(count_concepts(["a dog, a cat", "a dog and a bird"]), 1)
    assert chosen == [("dog", 2), ("bird", 1), ("cat", 1)]
    assert choose_concepts(count_concepts(["a dog, a cat", "a dog"]), 2) == [("dog", 2)]


def test_a_user_can_exclude_and_add_names_of_any_count():
    result = pool(CAPTIONS, 2, stop=["man", "unknown"], additions=["couple", "hill", "unicorn"])
    assert "man" not in result and "woman" in result
    assert (result["couple"], result["hill"], result["unicorn"]) == (1, 1, 0)


@pytest.mark.property
@given(st.randoms(use_true_random=False), st.integers(0, len(CAPTIONS)))
def test_counts_add_up_and_the_order_of_captions_does_not_matter(draw: random.Random, cut: int):
    shuffled = draw.sample(CAPTIONS, len(CAPTIONS))
    parts = count_concepts(shuffled[:cut])
    parts.add(count_concepts(shuffled[cut:]))
    whole = count_concepts(CAPTIONS)
    assert parts == whole and whole.num_captions == len(CAPTIONS)
    assert choose_concepts(parts, 1) == choose_concepts(whole, 1)
    assert all(count <= len(CAPTIONS) for count in whole.captions.values())
    assert not whole.nouns - whole.words and not whole.before_of - whole.alone


def test_several_processes_have_the_counts_of_one_process(monkeypatch):
    monkeypatch.setattr(concepts, "_CAPTIONS_PER_BATCH", 2)
    told = []
    several = count_concepts(iter(CAPTIONS * 3), processes=2, progress=told.append)
    assert several == count_concepts(CAPTIONS * 3)
    assert told == sorted(told) and told[-1] == 3 * len(CAPTIONS)


@pytest.mark.property
@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_text_is_counted(captions):
    counts = count_concepts(captions)
    assert counts.num_captions == len(captions)
    for name, count in choose_concepts(counts, 1):
        assert name and "\t" not in name and 1 <= count <= len(captions)


def test_unusual_captions_are_counted():
    result = pool(
        [
            "", " \n", "🐶🐶🐶", "\x00\ud800", "x" * 100_000, "a dog's bowl isn't a cat’s",
            "IMG_2034.JPG", "a café table", "a man in a t-shirt at 5th ave",
            "the dog " * 500,
        ]
    )  # fmt: skip
    assert {"dog", "bowl", "table", "man", "t-shirt"} <= result.keys()
    assert not {"th ave", "img", "dog's"} & result.keys() and max(map(len, result)) < 50


def test_the_file_has_a_name_and_a_count_per_line_and_is_never_partial(tmp_path):
    path = tmp_path / "new" / "concepts.txt"
    write_concepts(path, [("café table", 12), ("dog", 3)])
    assert path.read_bytes() == "café table\t12\ndog\t3\n".encode()

    def broken():
        yield "cat", 5
        raise OSError("disk is full")

    with pytest.raises(OSError, match="full"):
        write_concepts(path, broken())
    assert path.read_bytes().startswith("café".encode())


@pytest.mark.parametrize("package", ["HanTa.HanoverTagger", "simplemma"])
def test_a_missing_extra_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    concepts._tagger.cache_clear()
    with pytest.raises(MissingExtra, match=r'pip install -e "\.\[concepts\]"'):
        count_concepts(["a cat"])
