import html
import json
import pathlib

import ftfy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.text import tokenizer
from regionclip_jax.text.tokenizer import END_TOKEN, START_TOKEN, clean, tokenize

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "golden_openai_tokenizer.json"


@pytest.mark.parity
def test_ids_equal_those_of_openai_on_1426_texts():
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(cases) == 1426
    length = max(len(case["ids"]) for case in cases)
    tokens = tokenize([case["text"] for case in cases], length)
    expected = [case["ids"] + [0] * (length - len(case["ids"])) for case in cases]
    rows = zip(cases, tokens.tolist(), expected, strict=True)
    differing = [case["text"] for case, found, right in rows if found != right]
    assert not differing


def test_a_row_is_start_text_end_zeros():
    (row,) = tokenize(["a photo of a cat"])
    assert row.dtype == np.int32 and row.shape == (77,)
    assert row[:8].tolist() == [START_TOKEN, 320, 1125, 539, 320, 2368, END_TOKEN, 0]
    assert not row[7:].any()


def test_no_texts_give_no_rows():
    assert tokenize([]).shape == (0, 77)


def test_a_text_that_is_too_long_keeps_its_end_token_by_default():
    (row,) = tokenize(["dog " * 100])
    assert row[-1] == END_TOKEN and row.argmax() == 76 and row[-2] == 1929


def test_a_text_that_is_too_long_loses_its_end_token_as_in_the_reference_when_asked():
    long, exact = tokenize(["dog " * 100, "dog " * 75], keep_end_token=False)
    assert END_TOKEN not in long and long.argmax() == 0
    assert exact[-1] == END_TOKEN


def test_one_string_is_refused_instead_of_being_read_letter_by_letter():
    with pytest.raises(TypeError, match="list"):
        tokenize("a cat")


def test_a_context_without_room_for_start_and_end_is_refused():
    with pytest.raises(ValueError, match="context_length"):
        tokenize(["a cat"], context_length=1)


def test_cleaning_mends_entities_encodings_and_blanks():
    assert clean("  A &amp;amp; B\n\tcafÃ©\u00a0x ") == "a & b café x"


@pytest.mark.property
@given(st.text(st.characters(max_codepoint=0x180), max_size=30))
def test_the_fast_path_of_cleaning_changes_nothing(text):
    slow = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert clean(text) == tokenizer._BLANKS.sub(" ", slow.strip()).strip().lower()
