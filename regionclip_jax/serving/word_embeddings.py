"""Embeddings of words, kept one by one: a list with one new word embeds that word only."""

import dataclasses
import functools

import numpy as np

from regionclip_jax.artifacts.tokenizer_file import tokenizer_of
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.assembly.concept_pool import require_distinct
from regionclip_jax.model import RegionCLIP

_MOST_WORDS, _MOST_LISTS = 10_000, 32  # some 40 MB
_TEMPLATES = "clip"


class WordEmbeddings:
    """Vocabularies of any words of one model.

    An embedding does not depend on the other names, bit for bit (``assembly.concept_pool``). One
    thread at a time may use an object.
    """

    def __init__(self, model: RegionCLIP):
        self._model = model
        self._tokenize = tokenizer_of(model.directory, model.config.text).load()
        self._made: Vocabulary | None = None
        self._rows: dict[str, np.ndarray] = {}
        self.vocabulary = functools.lru_cache(_MOST_LISTS)(self._make)

    def _make(self, names: tuple[str, ...]) -> Vocabulary:
        """Return the vocabulary of these names; embed those that are new.

        Raises:
            UserError: two names are the same to the tokenizer.
        """
        new = tuple(name for name in names if name not in self._rows)
        if len(new) < len(names):
            require_distinct(names, _TEMPLATES, self._model.config.text, self._tokenize)
        if new:
            self._made = self._model.vocabulary(new, templates=_TEMPLATES)
            self._rows.update(zip(new, self._made.embeddings, strict=True))
        assert self._made is not None
        for name in names:  # the most recently used words stand last
            self._rows[name] = self._rows.pop(name)
        embeddings = np.stack([self._rows[name] for name in names])
        while len(self._rows) > _MOST_WORDS:
            del self._rows[next(iter(self._rows))]
        return dataclasses.replace(self._made, names=names, embeddings=embeddings)
