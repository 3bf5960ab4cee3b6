"""SigLIP's and SigLIP 2's token ids, from the vocabulary file that their publishers add.

The rules are those of Hugging Face (docs/reference/text.md#siglip). SigLIP: lower case, ASCII
punctuation deleted, blanks collapsed, then its SentencePiece vocabulary, and padding by the end
token. SigLIP 2: lower case, then Gemma's vocabulary, and padding by 0. The end token follows every
text, also one that is cut. A control token that is written out in a text is ordinary text, as in
SigLIP's training and unlike in Hugging Face's tokenizers.

A vocabulary is a ``tokenizer.json`` of the library tokenizers, or for SigLIP a ``spiece.model``,
whose reader is in the extra "siglip". The files are of unknown origin: their size is bounded, and
of ``tokenizer.json`` only steps are accepted that such vocabularies have.
"""

import base64
import contextlib
import json
import re
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, normalizers

from regionclip_jax.extras import require_extra
from regionclip_jax.settings import UserError
from regionclip_jax.untrusted import parse_json, read_bytes, reason, short

# Names of published files, by the format of their content.
JSON_NAME, SENTENCEPIECE_NAME = "tokenizer.json", "spiece.model"
FILE_NAMES = (JSON_NAME, SENTENCEPIECE_NAME)
# Gemma's has 34 MB, the largest published SentencePiece vocabulary 4 MB.
_MOST_BYTES = {JSON_NAME: 2**26, SENTENCEPIECE_NAME: 2**24}
_REMEDY = "give the tokenizer.json or spiece.model of the model's page"
# Longest piece of a vocabulary, in characters. Text behind the last token that is read costs time.
_LONGEST_PIECE = 64
_NORMALIZERS = {"Lowercase", "NFKC", "Precompiled", "Prepend", "Replace", "Sequence", "Strip"}
_PRE_TOKENIZERS = {"Metaspace", "Sequence", "Split", "WhitespaceSplit"}
_MODELS = {"BPE", "Unigram"}
# One class of characters, perhaps repeated: such an expression takes linear time, others need not.
_SIMPLE_REGEX = re.compile(
    r"( |\\[sSdDwW]|\\p\{\w+\}|\[\^?(\\.|[^\\\[\]])+\])(\+|\{\d{1,3},\d{0,3}\})?", re.DOTALL
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLANKS = re.compile(r"\s+")


class Rules(NamedTuple):
    """Token that ends a text, with its id, and the id of the padding."""

    end: str
    end_id: int
    pad_id: int


# By the tokenizer's name in ``text.tokenizer``.
RULES = {"siglip": Rules("</s>", 1, 1), "siglip2": Rules("<eos>", 1, 0)}


class Vocabulary(NamedTuple):
    """Content of a vocabulary file.

    Attributes:
        kind: of ``RULES``.
        size: number of ids.
        encode: text -> ids, without an end token.
    """

    kind: str
    size: int
    encode: Callable[[str], list[int]]


class SigLIPTokenizer:
    """Tokenizer of a SigLIP, a ``text.tokenizer.Tokenizer``.

    Args:
        kind: of ``RULES``.
        path: vocabulary file.

    Raises:
        UserError: the file is no vocabulary of this kind.
    """

    def __init__(self, kind: str, path: Path) -> None:
        self._vocabulary = read_vocabulary(path)
        if self._vocabulary.kind != kind:
            raise UserError(
                f"{path}: expected a vocabulary of the kind {kind!r}, found one of "
                f"{self._vocabulary.kind!r}; {_REMEDY}"
            )
        self._rules = RULES[kind]
        self._prepare = _canonical if kind == "siglip" else str
        self.vocab_size = self._vocabulary.size

    def __call__(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "N L"]:
        """Return token ids with the end token, padded to the context.

        Args:
            texts: N captions or prompts.
            context_length: L, number of tokens.

        Raises:
            TypeError: ``texts`` is a string instead of a sequence of strings.
            ValueError: ``context_length`` below 2.
        """
        if isinstance(texts, str):
            raise TypeError(
                "tokenizer: expected a sequence of strings, found a string: wrap it in a list"
            )
        if context_length < 2:
            raise ValueError(
                f"context_length must be at least 2 (one token, end), found {context_length}"
            )
        tokens = np.full((len(texts), context_length), self._rules.pad_id, np.int32)
        for row, text in enumerate(texts):
            text = _shorten(self._prepare(_encodable(text)), context_length)
            ids = [*self._vocabulary.encode(text)[: context_length - 1], self._rules.end_id]
            tokens[row, : len(ids)] = ids
        return tokens


def _encodable(text: str) -> str:
    """Replace lone surrogates, which have no bytes in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return text


def _canonical(text: str) -> str:
    return _BLANKS.sub(" ", text.lower().translate(_PUNCTUATION)).strip()


def _shorten(text: str, context_length: int) -> str:
    """Return at least the characters that are read, up to a blank if there is one."""
    most = _LONGEST_PIECE * context_length
    if len(text) <= most:
        return text
    return text[: max(text.rfind(" ", context_length, most), 0) or most]


def _format(content: bytes) -> str:
    """Return the name that publishers give to a file of this format."""
    return JSON_NAME if content.lstrip()[:1] == b"{" else SENTENCEPIECE_NAME


def read_content(path: Path) -> bytes:
    """Return the bytes of a vocabulary file.

    Raises:
        UserError: it is missing or larger than any vocabulary.
    """
    try:
        content = read_bytes(path, max(_MOST_BYTES.values()))
        if len(content) > _MOST_BYTES[_format(content)]:
            raise ValueError(f"{path} has {len(content)} bytes, more than any such file")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a vocabulary file, found none ({reason(error)}); {_REMEDY}"
        ) from error
    return content


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary file; execute nothing from it.

    Raises:
        UserError: it is no vocabulary of a SigLIP.
        MissingExtra: it is a ``spiece.model``, and its reader is not installed.
    """
    content = read_content(path)
    if _format(content) == JSON_NAME:
        return _from_json(content, path)
    return _from_sentencepiece(content, path)


def _from_sentencepiece(content: bytes, path: Path) -> Vocabulary:
    require_extra("siglip", f"{path}: reading a SentencePiece vocabulary")
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        size = pieces.get_piece_size()
    except RuntimeError as error:
        raise UserError(
            f"{path}: expected a SentencePiece vocabulary, found another or a damaged file "
            f"({reason(error)}); {_REMEDY}"
        ) from error
    end, end_id, _ = RULES["siglip"]
    if size <= end_id or pieces.id_to_piece(end_id) != end:
        raise UserError(
            f"{path}: expected SigLIP's SentencePiece vocabulary, in which {end!r} has the id "
            f"{end_id}, found another; {_REMEDY} (of SigLIP 2: its tokenizer.json)"
        )
    return Vocabulary("siglip", size, pieces.encode)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raise any error of the library as one of the file."""
    try:
        yield
    # It raises plain exceptions, and its panics are no ``Exception``.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{path}: expected the tokenizer.json of SigLIP or SigLIP 2, found another or a "
            f"damaged file ({reason(error)}); {_REMEDY}"
        ) from error


def _from_json(content: bytes, path: Path) -> Vocabulary:
    with _refusing(path):
        values = parse_json(content, path)
        _require_known(values)
        # Only ids are made here. The rules of this module replace what else the file states.
        for part in ("post_processor", "decoder", "truncation", "padding"):
            values[part] = None
        tokenizer = Tokenizer.from_str(json.dumps(values))
        ids = tokenizer.get_vocab()
        kinds = [kind for kind, rules in RULES.items() if ids.get(rules.end) == rules.end_id]
        if not kinds or max(ids.values()) >= len(ids):
            raise ValueError("other ids than those of SigLIP or SigLIP 2")
        (kind,) = kinds
        if kind == "siglip2":
            lower = normalizers.Lowercase()
            own = tokenizer.normalizer
            tokenizer.normalizer = normalizers.Sequence([lower, own] if own else [lower])
        tokenizer.encode_special_tokens = True
        # A damaged table of characters shows at its first use.
        tokenizer.encode("A ﬁ photo")

    def encode(text: str) -> list[int]:
        with _refusing(path):
            return tokenizer.encode(text, add_special_tokens=False).ids

    return Vocabulary(kind, len(ids), encode)


def _require_known(values: Any) -> None:
    """Refuse steps that no published vocabulary of a SigLIP has.

    Raises:
        ValueError: such a step, or another structure of the file.
    """
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type") not in _MODELS:
        found = model.get("type") if isinstance(model, dict) else model
        raise ValueError(f"model.type {short(found)}, expected one of {sorted(_MODELS)}")
    _require_steps(values.get("normalizer"), _NORMALIZERS, "normalizers")
    _require_steps(values.get("pre_tokenizer"), _PRE_TOKENIZERS, "pretokenizers")


def _require_steps(step: Any, known: set[str], inner: str) -> None:
    if step is None:
        return
    kind = step.get("type") if isinstance(step, dict) else step
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"the step {short(kind)}, expected one of {sorted(known)}")
    pattern = step.get("pattern")
    if pattern is not None:
        regex = pattern.get("Regex", " ") if isinstance(pattern, dict) else None
        if not isinstance(regex, str) or not _SIMPLE_REGEX.fullmatch(regex):
            raise ValueError(f"the pattern {short(pattern)}, expected one class of characters")
    if kind == "Precompiled":
        _require_table(step.get("precompiled_charsmap"))
    for part in step.get(inner, []) if kind == "Sequence" else []:
        _require_steps(part, known, inner)


def _require_table(text: Any) -> None:
    """Refuse a table of characters that states another size of its trie than it has.

    The library reserves the stated size first, and ends the process if memory lacks.
    """
    try:
        table = base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the table {short(text)} of characters") from error
    stated = int.from_bytes(table[:4], "little")
    if stated % 4 or not 4 <= stated <= len(table) - 4:
        raise ValueError(f"a table of {len(table)} bytes with a trie of {stated}")
