"""Store millions of short texts without a Python object for each."""

from collections.abc import Iterable

import numpy as np


class PackedTexts:
    """Sequence of texts in one block of memory; lone surrogates are preserved."""

    def __init__(self, texts: Iterable[str]):
        pieces = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self._bytes = b"".join(pieces)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].decode("utf-8", "surrogatepass")
