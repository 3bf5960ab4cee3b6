"""CLIP's token ids: OpenAI's cleaning of text, then the byte-pair encoder.

Source: docs/reference/text.md#tokenizer.
"""

import html
import re
from collections.abc import Sequence

import ftfy
import numpy as np
from jaxtyping import Int

from regionclip_jax.text.byte_pairs import BytePairEncoder

START_TOKEN = 49406
END_TOKEN = 49407
# Start token, one token, end token.
MIN_LENGTH = 3

# Text on which neither ftfy nor html.unescape can act: ASCII without control characters other than
# blanks (ftfy removes those) and without "&" (the start of an HTML entity).
_PLAIN = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")
_LONG_TEXT = 2000  # characters above which looking for a place to cut saves time
_BLANKS = re.compile(r"\s+")
# The special tokens written out in a text. OpenAI's scan sees one only where a piece begins, so not
# after punctuation, which would swallow its first characters.
_SPECIAL = re.compile(r"(?<![^\s\w])(?<!_)((?:<\|startoftext\|>|<\|endoftext\|>)+)")
_SPECIAL_IDS = {"<|startoftext|>": START_TOKEN, "<|endoftext|>": END_TOKEN}


def clean(text: str) -> str:
    """Mend mis-decoded characters, resolve HTML entities twice, collapse blanks, lower-case."""
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _BLANKS.sub(" ", text.strip()).strip().lower()


class ClipTokenizer:
    """Tokenizer of OpenAI's CLIP, a ``text.tokenizer.Tokenizer``."""

    vocab_size = END_TOKEN + 1

    def __init__(self) -> None:
        self._encoder = BytePairEncoder()

    def __call__(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "N L"]:
        """Return token ids with start and end token, padded with zeros.

        The last token of a text that is too long is the end token, where the text tower reads the
        embedding, as OpenAI's ``truncate=True``. The reference loses the end token: all such texts
        have the embedding of the start token (docs/reference/text.md#truncation).

        Args:
            texts: N captions or prompts.
            context_length: L, number of tokens.

        Raises:
            TypeError: ``texts`` is a string instead of a sequence of strings.
            ValueError: ``context_length`` below 3.
        """
        if isinstance(texts, str):
            raise TypeError(
                "tokenizer: expected a sequence of strings, found a string: wrap it in a list"
            )
        if context_length < MIN_LENGTH:
            raise ValueError(
                f"context_length must be at least {MIN_LENGTH} (start, one token, end), found "
                f"{context_length}"
            )
        tokens = np.zeros((len(texts), context_length), np.int32)
        for row, text in enumerate(texts):
            ids = self._encode(_shorten(_prepare(text), context_length))
            ids = [START_TOKEN, *ids[: context_length - 2], END_TOKEN]
            tokens[row, : len(ids)] = ids
        return tokens

    def _encode(self, text: str) -> list[int]:
        if "<|" not in text:
            return self._encoder.encode(text)
        ids: list[int] = []
        for piece in _SPECIAL.split(text):
            if _SPECIAL.fullmatch(piece):
                ids += [_SPECIAL_IDS[token + ">"] for token in piece.split(">")[:-1]]
            else:
                ids += self._encoder.encode(piece)
        return ids


def _prepare(text: str) -> str:
    # The encoder ignores blanks, so lower case is all the cleaning that plain text needs.
    return text.lower() if _PLAIN.fullmatch(text) else clean(text)


def _shorten(text: str, context_length: int) -> str:
    """Return at least the words that are read: a word is one token or more."""
    if len(text) < _LONG_TEXT:
        return text
    return " ".join(text.split(None, context_length)[:context_length])
