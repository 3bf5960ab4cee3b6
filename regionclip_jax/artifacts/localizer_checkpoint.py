"""The localizer of a model directory: ``localizer/card.json`` and ``localizer/params/`` (Orbax)."""

import functools
from pathlib import Path

import jax

from regionclip_jax.artifacts.model_card import FILE_NAME, CheckpointMismatch, LocalizerCard
from regionclip_jax.artifacts.model_checkpoint import describe_folder, load_sealed, save_sealed
from regionclip_jax.models.localizer import LocalizerConfig, init_localizer

FOLDER_NAME = "localizer"


@functools.lru_cache(maxsize=8)
def abstract_localizer(config: LocalizerConfig) -> dict:
    """Shapes and dtypes of a localizer's variables; allocates nothing. Callers share the tree."""
    return jax.eval_shape(lambda: init_localizer(config, jax.random.key(0)))


def save_localizer(directory: str | Path, variables: dict, card: LocalizerCard) -> None:
    """Adds a localizer to the model directory ``directory``, replacing one that was there.

    Raises:
        CheckpointMismatch: the variables are not those of ``card.architecture``.
    """
    folder = Path(directory) / FOLDER_NAME
    save_sealed(folder, variables, abstract_localizer(card.architecture), card)


def load_localizer(directory: str | Path) -> tuple[dict, LocalizerCard]:
    """Reads the localizer of a model directory.

    Returns:
        ``{"params", "batch_stats"}`` as nested dicts of fp32 numpy arrays, and the card.

    Raises:
        CheckpointMismatch: no complete localizer is there, or its arrays are not what its card
            says.
    """
    folder = Path(directory) / FOLDER_NAME
    path = folder / FILE_NAME
    if not path.is_file():
        raise CheckpointMismatch(
            f"{directory}: expected a localizer in {FOLDER_NAME}/ with {FILE_NAME}, found "
            f"{describe_folder(folder)}; add one with scripts/convert_checkpoint.py --localizer "
            "(a folder without a card was never finished: write it again)"
        )
    card = LocalizerCard.from_json(path.read_text(encoding="utf-8"), path)
    return load_sealed(folder, abstract_localizer(card.architecture), card), card
