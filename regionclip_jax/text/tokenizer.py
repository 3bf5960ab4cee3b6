"""Tokenizers by the name in a model's config (``tokenizer`` of a text tower)."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from regionclip_jax.settings import UserError
from regionclip_jax.text.clip_tokenizer import ClipTokenizer
from regionclip_jax.text.siglip_tokenizer import FILE_NAMES, RULES, SigLIPTokenizer


class Tokenizer(Protocol):
    """Function of texts to token ids, which are below ``vocab_size``."""

    vocab_size: int

    def __call__(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "N L"]:
        """Return one row of ``context_length`` ids for each text, cut or padded."""
        ...


class Kind(NamedTuple):
    """Constructor of a tokenizer; with ``needs_file`` it takes the path of a vocabulary."""

    build: Callable[..., Tokenizer]
    needs_file: bool = False


# The names stand in the cards of model directories, so an entry is never renamed or removed.
TOKENIZERS: dict[str, Kind] = {
    "clip": Kind(ClipTokenizer),
    **{name: Kind(functools.partial(SigLIPTokenizer, name), needs_file=True) for name in RULES},
}


class TokenizerSource(NamedTuple):
    """Name of a tokenizer and, if it needs one, its vocabulary file.

    It crosses to the processes that load data, which build the tokenizer themselves.
    """

    name: str
    file: Path | None = None

    def load(self) -> Tokenizer:
        """Return the tokenizer, as ``tokenizer_named``."""
        return tokenizer_named(self.name, self.file)


def needs_file(name: str) -> bool:
    """Return whether a tokenizer reads a vocabulary file, which a model directory then holds.

    Raises:
        ValueError: an unknown name.
    """
    return _kind(name).needs_file


@functools.cache
def tokenizer_named(name: str, file: Path | None = None) -> Tokenizer:
    """Return a tokenizer, built at its first use in a process.

    Args:
        file: vocabulary of a tokenizer that needs one.

    Raises:
        ValueError: an unknown name.
        UserError: the vocabulary is not given, or is not readable.
    """
    kind = _kind(name)
    if not kind.needs_file:
        return kind.build()
    if file is None:
        raise UserError(
            f"tokenizer {name!r}: expected its vocabulary ({' or '.join(FILE_NAMES)}), which a "
            "converted model directory holds, found none; start from such a directory"
        )
    return kind.build(file)


def _kind(name: str) -> Kind:
    if name not in TOKENIZERS:
        raise ValueError(
            f"tokenizer: expected one of {sorted(TOKENIZERS)}, found {name!r}; use the version of "
            "regionclip_jax that wrote the model"
        )
    return TOKENIZERS[name]
