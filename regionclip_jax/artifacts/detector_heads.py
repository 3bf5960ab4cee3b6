"""The heads of a fine-tuned detector: ``heads/card.json`` and ``heads/params/`` (Orbax).

They lie in the model directory of their CLIP, beside its ``localizer/``.
"""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

import regionclip_jax
from regionclip_jax.artifacts.model_card import (
    FILE_NAME,
    CheckpointMismatch,
    part_from_card,
    part_to_json,
    read_card,
)
from regionclip_jax.artifacts.model_checkpoint import load_sealed, require_intact, save_sealed
from regionclip_jax.models.detector_heads import BoxHead, MaskHead

FOLDER_NAME = "heads"


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
    """Input widths of the heads: region embeddings, and layer4's maps (None: no mask head)."""

    embed_dim: int
    mask_channels: int | None


@dataclasses.dataclass(frozen=True)
class HeadsCard:
    """Architecture and origin, as ``ModelCard``; ``source`` names the training classes."""

    architecture: HeadsConfig
    source: dict
    version: str = regionclip_jax.__version__
    parameters_sha256: str | None = dataclasses.field(default=None, compare=False)

    @property
    def label(self) -> str:
        """Description of the heads, for messages."""
        return "box head" if self.architecture.mask_channels is None else "box and mask heads"

    def to_json(self) -> str:
        return part_to_json(self)


def init_heads(config: HeadsConfig, key: jax.Array) -> dict:
    """Initialise parameters by head; under ``jax.eval_shape`` give shapes only."""
    box_key, mask_key = jax.random.split(key)
    heads = {"box_head": BoxHead().init(box_key, jnp.zeros((1, config.embed_dim)))["params"]}
    if config.mask_channels is not None:
        maps = jnp.zeros((1, 1, 1, config.mask_channels))
        heads["mask_head"] = MaskHead().init(mask_key, maps)["params"]
    return heads


def _abstract(config: HeadsConfig) -> dict:
    params = jax.eval_shape(lambda: init_heads(config, jax.random.key(0)))
    return {"params": params, "batch_stats": {}}


def save_heads(directory: str | Path, heads: dict, card: HeadsCard) -> None:
    """Write heads, parameters by name, to a model directory; replace existing ones."""
    variables = {"params": heads, "batch_stats": {}}
    save_sealed(Path(directory) / FOLDER_NAME, variables, _abstract(card.architecture), card)


def remove_heads(directory: str | Path) -> None:
    """Remove the heads of a model directory, if it has any."""
    if has_heads(directory):
        shutil.rmtree(Path(directory) / FOLDER_NAME)


def has_heads(directory: str | Path) -> bool:
    """Return True if a model directory has detector heads."""
    return (Path(directory) / FOLDER_NAME).exists()


def load_heads(directory: str | Path) -> tuple[dict, HeadsCard]:
    """Read the heads of a model directory: parameters by head, and the card.

    Raises:
        CheckpointMismatch: there are no complete heads, or they do not fit the card.
    """
    folder = Path(directory) / FOLDER_NAME
    path = folder / FILE_NAME
    if not path.is_file():
        raise CheckpointMismatch(
            f"{directory}: expected the heads of a detector in {FOLDER_NAME}/ with {FILE_NAME}; "
            "train one with configs/train_detector.py (a folder without a card was never finished)"
        )
    require_intact(folder, {FILE_NAME})
    card = HeadsCard(**part_from_card(read_card(path), path, HeadsConfig))
    return load_sealed(folder, _abstract, card)["params"], card
