"""``tokenizer.vocab``: a model directory's copy of the vocabulary that its tokenizer reads.

Only models whose tokenizer reads a file have one (``text.tokenizer``). It is the publisher's
``tokenizer.json`` or ``spiece.model`` byte for byte, and its digest is one of the directory's.
"""

from pathlib import Path

from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.extras import MissingExtra
from regionclip_jax.models.towers import TextTowerConfig
from regionclip_jax.settings import UserError
from regionclip_jax.text.siglip_tokenizer import (
    FILE_NAMES,
    read_content,
    read_vocabulary,
)
from regionclip_jax.text.tokenizer import TokenizerSource, needs_file

FILE_NAME = "tokenizer.vocab"


def tokenizer_of(directory: str | Path, text: TextTowerConfig) -> TokenizerSource:
    """Return the tokenizer of a model directory.

    Raises:
        CheckpointMismatch: the directory lacks the vocabulary that the tokenizer reads.
    """
    if not needs_file(text.tokenizer):
        return TokenizerSource(text.tokenizer)
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise CheckpointMismatch(
            f"{path}: expected the vocabulary of the tokenizer {text.tokenizer!r}, found no file; "
            "copy the directory again, or convert the model again"
        )
    return TokenizerSource(text.tokenizer, path)


def stored_files(tokenizer: TokenizerSource | None, text: TextTowerConfig) -> dict[str, bytes]:
    """Return the content of a model directory's tokenizer file, by its name.

    Args:
        tokenizer: of the model; None for one that reads no file.

    Raises:
        CheckpointMismatch: the text tower's tokenizer reads a file that is not given.
        UserError: the file is not readable.
    """
    if not needs_file(text.tokenizer):
        return {}
    if tokenizer is None or tokenizer.file is None or tokenizer.name != text.tokenizer:
        raise CheckpointMismatch(
            f"a model with the tokenizer {text.tokenizer!r} is complete only with its vocabulary "
            f"({' or '.join(FILE_NAMES)}), found {tokenizer}; give the file"
        )
    return {FILE_NAME: read_content(tokenizer.file)}


def choose_tokenizer(
    text: TextTowerConfig, checkpoint: Path, given: Path | None
) -> TokenizerSource:
    """Return the tokenizer of a converted text tower.

    Args:
        text: its tokenizer's name may be that of another vocabulary of the same family.
        checkpoint: vocabularies are looked for beside it.
        given: vocabulary file of the user's choice; None: the one beside the checkpoint.

    Raises:
        CheckpointMismatch: a file is missing, is not readable, or the tower reads none.
    """
    if not needs_file(text.tokenizer):
        if given is not None:
            raise CheckpointMismatch(
                f"{given}: expected no tokenizer file for {checkpoint}, whose tokenizer "
                f"{text.tokenizer!r} is part of this package; leave out --tokenizer"
            )
        return TokenizerSource(text.tokenizer)
    beside = (checkpoint.with_name(name) for name in FILE_NAMES)
    path = given or next((path for path in beside if path.is_file()), None)
    if path is None:
        raise CheckpointMismatch(
            f"{checkpoint}: expected SigLIP's vocabulary, {' or '.join(FILE_NAMES)}, beside it, "
            "found none; download it from the model's page (for SigLIP 2: tokenizer.json) and give "
            "it as --tokenizer FILE"
        )
    try:
        return TokenizerSource(read_vocabulary(path).kind, path)
    except MissingExtra:
        raise
    except UserError as error:
        raise CheckpointMismatch(str(error)) from error
