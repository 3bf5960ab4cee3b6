import html
import json
import pathlib
import re

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip_jax.text import clip_tokenizer
from regionclip_jax.text.clip_tokenizer import END_TOKEN, START_TOKEN, clean
from regionclip_jax.text.tokenizer import tokenizer_named

tokenize = tokenizer_named("clip")
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "golden_openai_tokenizer.json"


@pytest.mark.parity
def test_ids_equal_those_of_openai_on_1426_texts():
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(cases) == 1426
    length = max(len(case["ids"]) for case in cases)
    tokens = tokenize([case["text"] for case in cases], length)
    expected = [case["ids"] + [0] * (length - len(case["ids"])) for case in cases]
    rows = zip(cases, tokens.tolist(), expected, strict=True)
    differing = [case["text"] for case, actual, expected in rows if actual != expected]
    assert not differing


def test_a_row_is_start_text_end_zeros():
    (row,) = tokenize(["a photo of a cat"], 77)
    assert row.dtype == np.int32 and row.shape == (77,)
    assert row[:8].tolist() == [START_TOKEN, 320, 1125, 539, 320, 2368, END_TOKEN, 0]
    assert not row[7:].any()


def test_no_texts_give_no_rows():
    assert tokenize([], 77).shape == (0, 77)


def test_a_text_that_is_too_long_keeps_its_end_token():
    (row,) = tokenize(["dog " * 100], 77)
    assert row[-1] == END_TOKEN and row.argmax() == 76 and row[-2] == 1929


def test_a_single_string_is_refused():
    with pytest.raises(TypeError, match="list"):
        tokenize("a cat", 77)


def test_a_context_without_space_for_a_token_between_start_and_end_is_refused():
    with pytest.raises(ValueError, match="context_length"):
        tokenize(["a cat"], context_length=2)


def test_cleaning_repairs_entities_encodings_and_blanks():
    assert clean("  A &amp;amp; B\n\tcafÃ©\u00a0x ") == "a & b café x"


@pytest.mark.property
@given(st.text(st.characters(max_codepoint=0x180), max_size=30))
def test_the_fast_path_of_cleaning_changes_nothing(text):
    slow = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert clean(text) == clip_tokenizer._BLANKS.sub(" ", slow.strip()).strip().lower()


def slowly(text: str, context_length: int) -> list[int]:
    """Return one row of tokens by cleaning and encoding the whole text."""
    ids = [START_TOKEN]
    for piece in re.split(clip_tokenizer._SPECIAL.pattern, clean(text)):
        marks = re.findall(r"<\|(?:start|end)oftext\|>", piece)
        if marks and "".join(marks) == piece:
            ids += [clip_tokenizer._SPECIAL_IDS[mark] for mark in marks]
        else:
            ids += tokenize._encoder.encode(piece)
    ids = [*ids, END_TOKEN][:context_length]
    ids[-1] = END_TOKEN
    return ids + [0] * (context_length - len(ids))


NASTY = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(max_codepoint=0x7F), max_size=60),
    st.lists(
        st.sampled_from(
            [
                "a", "Cat", "  ", "\t\r\n", "\x0b", "\x1f", "\x85", "\u3000", "&amp;", "&amp;lt;",
                "&#0;", "&#xD800;", "<|", "<|endoftext|>", "<|STARTOFTEXT|>", "&lt;|endoftext|>",
                "\x00", "\ud800", "\udc00", "👩‍👩‍👧", "cafÃ©",
                "İ", "ß", "١٢", "'S", "don't", "!", "...",
            ]
        ),
        max_size=90,
    ).map("".join),
)  # fmt: skip


@pytest.mark.property
@settings(max_examples=60)
@given(st.lists(NASTY, max_size=4), st.sampled_from([3, 5, 77]))
def test_any_text_has_the_ids_of_the_slow_path(texts, context_length):
    tokens = tokenize(texts, context_length)
    assert tokens.dtype == np.int32 and tokens.shape == (len(texts), context_length)
    for row, text in zip(tokens.tolist(), texts, strict=True):
        assert row == slowly(text, context_length), repr(text)


@pytest.mark.parametrize(
    "text",
    [
        "dog " * 25_000, "dog" * 30_000, "!" * 3000, "1" * 3000, "é " * 2000,
        "<|endoftext|> " * 300, "a\n\n\tb " * 1000, " " * 3000 + "cat",
    ],
    ids=lambda text: text[:6].strip(),
)  # fmt: skip
def test_a_very_long_text_has_the_ids_of_its_beginning(text):
    (row,) = tokenize([text], 77)
    assert row.tolist() == slowly(text, 77)


def test_text_with_a_special_token_is_cleaned_once():
    text = "&" + "amp;" * 5 + " B <|ENDOFTEXT|>"  # cleaning takes two of the five
    (row,) = tokenize([text], 77)
    assert "&amp;" in clean(text) and row.tolist() == slowly(text, 77)


def test_empty_texts_are_start_and_end():
    for row in tokenize(["", " \n\t ", "\x00", "\x7f"], 77):
        assert row[:3].tolist() == [START_TOKEN, END_TOKEN, 0]
