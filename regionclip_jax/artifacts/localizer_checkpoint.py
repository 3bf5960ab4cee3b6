"""The localizer of a model directory: ``localizer/card.json`` and ``localizer/params/`` (Orbax).

Or its trunk alone, in ``trunk/``: an ImageNet initialisation for a localizer.
"""

import functools
from pathlib import Path

import jax

from regionclip_jax.artifacts.model_card import (
    FILE_NAME,
    CheckpointMismatch,
    LocalizerCard,
    read_card,
)
from regionclip_jax.artifacts.model_checkpoint import (
    describe_folder,
    load_sealed,
    require_intact,
    save_sealed,
)
from regionclip_jax.models.localizer import LocalizerConfig, init_localizer

FOLDER_NAME = "localizer"
TRUNK_FOLDER_NAME = "trunk"


@functools.lru_cache(maxsize=8)
def abstract_localizer(config: LocalizerConfig) -> dict:
    """Return a localizer's abstract variables (shape, dtype); callers share the tree."""
    return jax.eval_shape(lambda: init_localizer(config, jax.random.key(0)))


def save_localizer(directory: str | Path, variables: dict, card: LocalizerCard) -> None:
    """Write a localizer to the model directory ``directory``; replace an existing one.

    Raises:
        CheckpointMismatch: the variables do not fit ``card.architecture``.
    """
    folder = Path(directory) / FOLDER_NAME
    save_sealed(folder, variables, abstract_localizer(card.architecture), card)


def load_localizer(directory: str | Path) -> tuple[dict, LocalizerCard]:
    """Read the localizer of a model directory.

    Returns:
        ``{"params", "batch_stats"}`` as nested dicts of fp32 numpy arrays, and the card.

    Raises:
        CheckpointMismatch: there is no complete localizer, or its arrays do not fit its card.
    """
    folder = Path(directory) / FOLDER_NAME
    card = _load_card(folder, "localizer", "--localizer")
    return load_sealed(folder, abstract_localizer, card), card


def load_localizer_card(directory: str | Path) -> LocalizerCard:
    """Read the card of the localizer in ``directory``, without its arrays.

    Raises:
        CheckpointMismatch: there is no card.
    """
    return _load_card(Path(directory) / FOLDER_NAME, "localizer", "--localizer")


def abstract_trunk(config: LocalizerConfig) -> dict:
    """Return the abstract variables (shape, dtype) of a localizer's trunk."""
    return {name: tree["trunk"] for name, tree in abstract_localizer(config).items()}


def save_trunk(directory: str | Path, variables: dict, card: LocalizerCard) -> None:
    """Write ``directory/trunk``, the trunk of ``card.architecture`` alone.

    Raises:
        CheckpointMismatch: the variables do not fit the trunk.
    """
    folder = Path(directory) / TRUNK_FOLDER_NAME
    save_sealed(folder, variables, abstract_trunk(card.architecture), card)


def load_trunk(directory: str | Path) -> tuple[dict, LocalizerCard]:
    """Read ``directory/trunk``, as ``load_localizer``."""
    folder = Path(directory) / TRUNK_FOLDER_NAME
    card = _load_card(folder, "trunk", "--trunk")
    return load_sealed(folder, abstract_trunk, card), card


def _load_card(folder: Path, what: str, flag: str) -> LocalizerCard:
    path = folder / FILE_NAME
    if not path.is_file():
        raise CheckpointMismatch(
            f"{folder.parent}: expected a {what} in {folder.name}/ with {FILE_NAME}, found "
            f"{describe_folder(folder)}; add one with scripts/convert_checkpoint.py {flag} "
            "(a folder without a card was never finished: write it again)"
        )
    require_intact(folder, {FILE_NAME})
    return LocalizerCard.from_json(read_card(path), path)
