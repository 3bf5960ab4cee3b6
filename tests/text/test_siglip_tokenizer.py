"""Ids of SigLIP's tokenizers; ``golden/make_siglip_vocabularies.py`` made files and ids."""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.extras import MissingExtra
from regionclip_jax.settings import UserError
from regionclip_jax.text import siglip_tokenizer
from regionclip_jax.text.tokenizer import TokenizerSource, tokenizer_named

GOLDEN = Path(__file__).parents[1] / "golden"
SIGLIP, SIGLIP2 = GOLDEN / "siglip_tokenizer.json", GOLDEN / "siglip2_tokenizer.json"
PIECES = GOLDEN / "siglip_spiece.model"


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "path"), [("siglip", SIGLIP), ("siglip", PIECES), ("siglip2", SIGLIP2)]
)
def test_ids_equal_those_of_transformers(kind, path):
    if path is PIECES:
        pytest.importorskip("sentencepiece")
    cases = json.loads((GOLDEN / "siglip_tokens.json").read_text())
    assert len(cases["texts"]) == 27
    tokens = TokenizerSource(kind, path).load()(cases["texts"], cases["length"])
    assert tokens.dtype == np.int32
    rows = zip(cases["texts"], tokens.tolist(), cases[kind], strict=True)
    assert [text for text, row, expected in rows if row != expected] == []


@pytest.mark.property
@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_text_is_ids_below_the_vocabulary_an_end_and_padding(texts):
    for kind, path in (("siglip", SIGLIP), ("siglip2", SIGLIP2)):
        tokenize, pad_id = tokenizer_named(kind, path), siglip_tokenizer.RULES[kind].pad_id
        tokens = tokenize(texts, 64)
        assert tokens.shape == (len(texts), 64) and (tokens < tokenize.vocab_size).all()
        for row in tokens.tolist():
            end = row.index(1)
            assert set(row[end + 1 :]) <= {pad_id}


def test_a_text_that_is_too_long_ends_with_the_end_token():
    for kind, path in (("siglip", SIGLIP), ("siglip2", SIGLIP2)):
        tokenize = tokenizer_named(kind, path)
        for text in ("dog " * 50_000, "dog" * 50_000):
            (row,) = tokenize([text], 8)
            assert row[-1] == 1
            np.testing.assert_array_equal(row, tokenize([text[:5000]], 8)[0])


def test_a_control_token_of_a_text_is_text():
    for kind, path in (("siglip", SIGLIP), ("siglip2", SIGLIP2)):
        (row,) = tokenizer_named(kind, path)(["</s> <pad> <eos> <bos>"], 64)
        assert row.tolist().index(1) > 8


def test_a_lone_surrogate_is_a_replacement_character():
    tokenize = tokenizer_named("siglip2", SIGLIP2)
    np.testing.assert_array_equal(
        tokenize(["a\ud800b"], 16), tokenize(["a\ufffd\ufffd\ufffdb"], 16)
    )


def test_a_single_string_and_a_context_without_a_token_are_refused():
    tokenize = tokenizer_named("siglip", SIGLIP)
    with pytest.raises(TypeError, match="list"):
        tokenize("a cat", 64)
    with pytest.raises(ValueError, match="context_length"):
        tokenize(["a cat"], 1)


def test_without_its_file_the_remedy_is_named():
    with pytest.raises(
        UserError, match="tokenizer.json or spiece.model.*start from such a directory"
    ):
        tokenizer_named("siglip2")
    with pytest.raises(UserError, match="of the kind 'siglip', found one of 'siglip2'"):
        tokenizer_named("siglip", SIGLIP2)


def test_without_sentencepiece_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtra, match=r"needs the extra 'siglip'.*\[siglip\]"):
        siglip_tokenizer.read_vocabulary(PIECES)


def _content(path=SIGLIP2) -> dict:
    return json.loads(path.read_text())


def changed(content: dict, key: str, value) -> dict:
    """Return the content with the value of a dotted key replaced."""
    *outer, last = key.split(".")
    inner = content
    for part in outer:
        inner = inner[part]
    inner[last] = value
    return content


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("normalizer", {"type": "Nmt"}, "the step 'Nmt'"),
        ("normalizer.normalizers", [{"type": "StripAccents"}], "the step 'StripAccents'"),
        ("pre_tokenizer", {"type": "ByteLevel"}, "the step 'ByteLevel'"),
        ("pre_tokenizer.pattern", {"Regex": "(a+)+b"}, "the pattern"),
        ("pre_tokenizer.pattern", {"Regex": "[a-z]+[a-z]+$"}, "one class of characters"),
        ("pre_tokenizer.pattern", {"Regex": 7}, "one class of characters"),
        ("pre_tokenizer.pattern", "a", "the pattern"),
        ("model.type", "WordLevel", "model.type 'WordLevel'"),
        ("model", [], "model.type"),
        ("model.vocab", {"<eos>": 1}, "vocab|unk|Merges"),
        ("model.merges", [["a"]], "merges|data did not match"),
        ("added_tokens", [{"id": 2**31, "content": "<more>"}], "missing field|other ids"),
    ],
)
def test_a_vocabulary_with_other_steps_is_refused(tmp_path, key, value, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed(_content(), key, value)))
    with pytest.raises(UserError, match=message) as caught:
        siglip_tokenizer.read_vocabulary(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_vocabulary_that_states_the_rules_itself_gives_the_same_ids(tmp_path):
    """As conversions for other programs do."""
    content = _content(SIGLIP)
    own = content["normalizer"]["normalizers"]
    punctuation = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
    stated = [
        {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": punctuation}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    content["normalizer"]["normalizers"] = stated + own
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    cases = json.loads((GOLDEN / "siglip_tokens.json").read_text())
    tokens = tokenizer_named("siglip", path)(cases["texts"], cases["length"])
    assert tokens.tolist() == cases["siglip"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\x0a\xff\xff\xff\xff\x0f", b"{" * 2000, b"weights"]
)
def test_a_damaged_vocabulary_is_refused_with_its_file(tmp_path, content):
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match="spiece.model: .*; give the tokenizer.json or spiece.model"
    ):
        siglip_tokenizer.read_vocabulary(path)


@pytest.mark.parametrize("change", ["empty", "short", "half", "4 GiB", "odd", "number", "text"])
def test_a_table_of_characters_of_another_size_is_refused(tmp_path, change):
    """The library would reserve the stated size, and end the process without that memory."""
    content = _content(SIGLIP)
    steps = content["normalizer"]["normalizers"]
    table = base64.b64decode(steps[0]["precompiled_charsmap"])
    changed = {
        "empty": "",
        "short": "AAAA",
        "half": base64.b64encode(table[: len(table) // 2]).decode(),
        "4 GiB": "/" * len(steps[0]["precompiled_charsmap"]),
        "odd": base64.b64encode((5).to_bytes(4, "little") + table[4:]).decode(),
        "number": 7,
        "text": "é",
    }
    steps[0]["precompiled_charsmap"] = changed[change]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json: .*\(.*(with a trie of|of characters)"):
        siglip_tokenizer.read_vocabulary(path)


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(siglip_tokenizer._MOST_BYTES, "tokenizer.json", 1000)
    with pytest.raises(UserError, match="more than any such file"):
        siglip_tokenizer.read_vocabulary(SIGLIP2)
