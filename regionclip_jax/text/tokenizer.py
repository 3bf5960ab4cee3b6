"""CLIP's token ids: OpenAI's cleaning of text, then the byte-pair encoder.

Source: docs/reference/text.md#tokenizer.
"""

import functools
import html
import re
from collections.abc import Sequence

import ftfy
import numpy as np
from jaxtyping import Int

from regionclip_jax.text.byte_pairs import BytePairEncoder

CONTEXT_LENGTH = 77
START_TOKEN = 49406
END_TOKEN = 49407

# Text on which neither ftfy nor html.unescape can act: ASCII without control characters other than
# blanks (ftfy removes those) and without "&" (the start of an HTML entity).
_PLAIN = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")
_LONG_TEXT = 2000  # letters above which it pays to look where the text may be cut
_BLANKS = re.compile(r"\s+")
# The special tokens written out in a text. OpenAI's scan sees one only where a piece begins, so not
# after punctuation, which would swallow its first characters.
_SPECIAL = re.compile(r"(?<![^\s\w])(?<!_)((?:<\|startoftext\|>|<\|endoftext\|>)+)")
_SPECIAL_IDS = {"<|startoftext|>": START_TOKEN, "<|endoftext|>": END_TOKEN}


def clean(text: str) -> str:
    """Mends mis-decoded characters, resolves HTML entities twice, collapses blanks, lower-cases."""
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _BLANKS.sub(" ", text.strip()).strip().lower()


def tokenize(
    texts: Sequence[str], context_length: int = CONTEXT_LENGTH, keep_end_token: bool = True
) -> Int[np.ndarray, "N L"]:
    """Token ids with start and end token, padded with zeros.

    Args:
        texts: N captions or prompts.
        context_length: L, number of tokens.
        keep_end_token: what becomes of a text that is too long. True (default, as OpenAI's own
            ``truncate=True``): its last token is the end token, where the text encoder reads the
            embedding. False (the reference): it is cut at L and the end token is lost, so that
            every such text has the same embedding, that of the start token
            (docs/reference/text.md#truncation).

    Raises:
        TypeError: ``texts`` is one string, not a sequence of them.
        ValueError: ``context_length`` below 3.
    """
    if isinstance(texts, str):
        raise TypeError("tokenize expects a sequence of strings, found a string: wrap it in a list")
    if context_length < 3:
        raise ValueError(
            f"context_length must be at least 3 (start, one token, end), found {context_length}"
        )
    tokens = np.zeros((len(texts), context_length), np.int32)
    for row, text in enumerate(texts):
        ids = [START_TOKEN, *_encode(_shorten(_prepare(text), context_length)), END_TOKEN]
        if len(ids) > context_length:
            ids = ids[:context_length]
            if keep_end_token:
                ids[-1] = END_TOKEN
        tokens[row, : len(ids)] = ids
    return tokens


def _prepare(text: str) -> str:
    # The encoder ignores blanks, so lower case is all the cleaning that plain text needs.
    return text.lower() if _PLAIN.fullmatch(text) else clean(text)


def _shorten(text: str, context_length: int) -> str:
    """At least the words that are read: as many as tokens, since every word is one or more."""
    if len(text) < _LONG_TEXT:
        return text
    return " ".join(text.split(None, context_length)[:context_length])


def _encode(text: str) -> list[int]:
    if "<|" not in text:
        return _encoder().encode(text)
    ids: list[int] = []
    for piece in _SPECIAL.split(text):
        if _SPECIAL.fullmatch(piece):
            ids += [_SPECIAL_IDS[token + ">"] for token in piece.split(">")[:-1]]
        else:
            ids += _encoder().encode(piece)
    return ids


@functools.cache
def _encoder() -> BytePairEncoder:
    return BytePairEncoder()
