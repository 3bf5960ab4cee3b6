"""Files of a model directory, as patterns of relative names in which ``*`` is any text."""

import fnmatch
from pathlib import Path

from regionclip_jax.artifacts import (
    detector_heads,
    digests,
    localizer_checkpoint,
    model_card,
    tokenizer_file,
    vocabulary,
)
from regionclip_jax.artifacts.model_checkpoint import PARAMS_NAME

SELF_CHECK_NAME = "self_check.json"
MODEL_FILES = (
    model_card.FILE_NAME,
    digests.FILE_NAME,
    f"{PARAMS_NAME}/*",
    tokenizer_file.FILE_NAME,
    vocabulary.FILE_NAME,
    SELF_CHECK_NAME,
    *(
        f"{folder}/{name}"
        for folder in (localizer_checkpoint.FOLDER_NAME, detector_heads.FOLDER_NAME)
        for name in (model_card.FILE_NAME, digests.FILE_NAME, f"{PARAMS_NAME}/*")
    ),
)


def is_model_file(name: str) -> bool:
    """Return whether a relative name is that of a file of a model directory."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def files_of(directory: Path) -> list[Path]:
    """Return the existing files of a model directory, sorted."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in files if is_model_file(path.relative_to(directory).as_posix()))
