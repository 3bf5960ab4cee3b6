"""CLIP's byte-pair encoder over its merges, ``clip_merges.txt.gz``.

Source: docs/reference/text.md#tokenizer.
"""

import functools
import gzip
import importlib.resources
import itertools

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

_WORD_END = "</w>"
# Letters and numbers are those of Unicode 16 from tokenizers 0.21.4 on. Before, they were those of
# an older version, hence the lower bound in setup.cfg.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Captions repeat their words: with a cache, real captions take a quarter of the time.
_CACHED_WORDS = 1 << 16
_LONGEST_CACHED_TEXT = 2000  # characters; bounds the memory of the cache


class BytePairEncoder:
    """Byte-pair encoder of clean, lower-case text, without start, end and special tokens."""

    def __init__(self) -> None:
        self._tokenizer = _build_tokenizer()
        self._encode_word = functools.lru_cache(_CACHED_WORDS)(self._encode)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text of any length."""
        if len(text) > _LONGEST_CACHED_TEXT:
            return self._encode(text)
        # No piece contains a blank, so the ids of a word do not depend on its neighbours.
        return list(itertools.chain.from_iterable(map(self._encode_word, text.split())))

    def _encode(self, text: str) -> list[int]:
        # encode_batch would start threads, and a fork after it (data loader workers) would warn.
        return self._tokenizer.encode(text).ids


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the ids of all tokens but start and end, and the merged pairs by priority."""
    merges = _read_merges()
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + _WORD_END for symbol in symbols), *map("".join, merges)]
    return {token: index for index, token in enumerate(tokens)}, merges


def _build_tokenizer() -> Tokenizer:
    vocabulary, merges = vocabulary_and_merges()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=_WORD_END))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _read_merges() -> list[tuple[str, str]]:
    """Return the 48,894 pairs of symbols that CLIP merges, in descending priority."""
    file = importlib.resources.files("regionclip_jax.text") / "clip_merges.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
    return [(first, second) for first, second in (line.split(" ") for line in lines)]


def _byte_symbols() -> list[str]:
    """Return the printable character that stands for each byte, in the order of CLIP's ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = range(256, 512 - len(printable))
    return [chr(code) for code in [*printable, *others]]
