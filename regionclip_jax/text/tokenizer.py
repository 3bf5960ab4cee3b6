"""Tokenizers by the name in a model's config (``tokenizer`` of a text tower)."""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int

from regionclip_jax.text.clip_tokenizer import ClipTokenizer


class Tokenizer(Protocol):
    """Function of texts to token ids, which are below ``vocab_size``."""

    vocab_size: int

    def __call__(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "N L"]:
        """Return one row of ``context_length`` ids for each text, cut or padded."""
        ...


# The names stand in the cards of model directories, so an entry is never renamed or removed.
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"clip": ClipTokenizer}


@functools.cache
def tokenizer_named(name: str) -> Tokenizer:
    """Return a tokenizer, built at its first use in a process.

    Raises:
        ValueError: an unknown name.
    """
    if name not in TOKENIZERS:
        raise ValueError(
            f"tokenizer: expected one of {sorted(TOKENIZERS)}, found {name!r}; use the version of "
            "regionclip_jax that wrote the model"
        )
    return TOKENIZERS[name]()
