import gzip
import hashlib
import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.text import byte_pairs
from regionclip_jax.text.byte_pairs import BytePairEncoder
from regionclip_jax.text.clip_tokenizer import clean


@pytest.fixture(scope="module")
def encoder() -> BytePairEncoder:
    return BytePairEncoder()


def test_symbols_and_merges_have_all_ids_below_the_start_token(encoder):
    merges = byte_pairs._read_merges()
    assert len(merges) == 48_894
    assert merges[0] == ("i", "n") and merges[-1] == ("jeky", "ll</w>")
    vocabulary = encoder._tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(49_406))
    assert vocabulary["!"] == 0 and vocabulary["!</w>"] == 256 and vocabulary["in"] == 512


def test_the_merges_are_those_of_the_notice():
    file = importlib.resources.files("regionclip_jax.text") / "clip_merges.txt.gz"
    digest = hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest()
    notice = (Path(__file__).parents[2] / "third_party" / "NOTICE").read_text()
    assert digest in notice and "Copyright (c) 2021 OpenAI" in notice


def test_every_byte_has_a_unique_symbol_that_is_no_blank():
    symbols = byte_pairs._byte_symbols()
    assert len(set(symbols)) == 256
    assert not any(symbol.isspace() for symbol in symbols)


@pytest.mark.property
@given(st.text(max_size=60))
def test_separate_words_have_the_ids_of_the_whole_text(encoder, text):
    text = clean(text)
    assert encoder.encode(text) == encoder._encode(text)


def test_a_fork_after_encoding_gives_no_warning():
    code = """
import os
from regionclip_jax.text.tokenizer import tokenizer_named
tokenize = tokenizer_named("clip")
first = tokenize(["a photo of a cat", "a dog"] * 50, 77)
child = os.fork()
if not child:
    os._exit(0 if (tokenize(["a zebra", "a dog"], 77)[1] == first[1]).all() else 1)
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "0" and not done.stderr
