"""The heads of a fine-tuned detector: ``heads/card.json`` and ``heads/params/`` (Orbax).

They lie in the model directory of their CLIP, beside its ``localizer/``.
"""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

import regionclip_jax
from regionclip_jax.artifacts.card_fields import AGAIN, fits, read_fields
from regionclip_jax.artifacts.model_card import (
    FILE_NAME,
    CheckpointMismatch,
    part_from_card,
    part_to_json,
    read_card,
)
from regionclip_jax.artifacts.model_checkpoint import load_sealed, require_intact, save_sealed
from regionclip_jax.models.detector_heads import BoxHead, MaskHead
from regionclip_jax.models.towers import IMAGE_TOWERS, CLIPConfig, kind_of, num_blocks
from regionclip_jax.models.vit_pyramid import (
    PYRAMID_HEADS,
    PyramidConfig,
    PyramidHeads,
    init_pyramid_heads,
)
from regionclip_jax.untrusted import short

FOLDER_NAME = "heads"


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
    """Widths of the heads: region embeddings, and maps for masks (None: no mask head)."""

    embed_dim: int
    mask_channels: int | None
    # Heads on a feature pyramid of a frozen ViT, in place of those on the tower's own regions.
    pyramid: PyramidConfig | None = None


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
        if self.architecture.pyramid is not None:
            return "feature pyramid with its heads"
        return "box head" if self.architecture.mask_channels is None else "box and mask heads"

    def to_json(self) -> str:
        return part_to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes, path: str | Path = FILE_NAME) -> "HeadsCard":
        """Parse a card; ``path`` is the file that errors name.

        Raises:
            CheckpointMismatch: not JSON, another format number, or other fields.
        """
        fields = part_from_card(text, path, HeadsConfig)
        config = fields["architecture"]
        if config.pyramid is not None:
            # A card holds the inner config as an object.
            pyramid = read_fields(PyramidConfig, config.pyramid, f"{path}: architecture.pyramid")
            fields["architecture"] = dataclasses.replace(config, pyramid=pyramid)
        classes = fields["source"].get("classes", [])
        if not fits(list[str], classes):
            raise CheckpointMismatch(
                f"{path}: source.classes: expected names, found {short(classes)}; {AGAIN}"
            )
        return cls(**fields)


def pyramid_heads(
    config: HeadsConfig, *, frozen_norm: bool = True, dtype: jnp.dtype = jnp.float32
) -> PyramidHeads | None:
    """Return the module of the heads on a pyramid; None for other heads."""
    if config.pyramid is None:
        return None
    with_masks = config.mask_channels is not None
    return PyramidHeads(config.pyramid, config.embed_dim, with_masks, frozen_norm, dtype)


def open_pyramid(
    heads: dict, card: "HeadsCard", clip: CLIPConfig, where: str | Path, dtype: jnp.dtype
) -> tuple[PyramidHeads, dict] | None:
    """Return the module of loaded heads on a pyramid, and its variables; None for other heads.

    Args:
        heads, card: as of ``load_heads``.
        clip: of the model directory.
        where: the directory, for errors.
        dtype: type of the computation.

    Raises:
        CheckpointMismatch: the tower has no maps of blocks, too few blocks, or other widths.
    """
    config = card.architecture
    module, pyramid = pyramid_heads(config, dtype=dtype), config.pyramid
    if module is None or pyramid is None:
        return None
    kind, layers = kind_of(clip.image, IMAGE_TOWERS), num_blocks(clip.image)
    width = getattr(clip.image, "width", 0)
    widths = (pyramid.width, config.embed_dim)
    if max(pyramid.from_blocks) >= layers or widths != (width, clip.embed_dim):
        raise CheckpointMismatch(
            f"{where}: its heads read blocks {list(pyramid.from_blocks)} of {pyramid.width} "
            f"channels and embed to {config.embed_dim}; its image tower of the family {kind!r} has "
            f"{layers} blocks with maps, {width} channels, and embeds to {clip.embed_dim}; copy "
            "the whole directory again"
        )
    return module, {name: tree[PYRAMID_HEADS] for name, tree in heads.items()}


def init_heads(config: HeadsConfig, key: jax.Array) -> dict:
    """Initialise ``{"params", "batch_stats"}`` by head; under ``jax.eval_shape`` give shapes only.

    Only heads on a pyramid have batch statistics.
    """
    if (pyramid := pyramid_heads(config)) is not None:
        variables = init_pyramid_heads(pyramid, key)
        return {name: {PYRAMID_HEADS: tree} for name, tree in variables.items()}
    box_key, mask_key = jax.random.split(key)
    heads = {"box_head": BoxHead().init(box_key, jnp.zeros((1, config.embed_dim)))["params"]}
    if config.mask_channels is not None:
        maps = jnp.zeros((1, 1, 1, config.mask_channels))
        heads["mask_head"] = MaskHead().init(mask_key, maps)["params"]
    return {"params": heads, "batch_stats": {}}


def _abstract(config: HeadsConfig) -> dict:
    return jax.eval_shape(lambda: init_heads(config, jax.random.key(0)))


def save_heads(directory: str | Path, variables: dict, card: HeadsCard) -> None:
    """Write heads, variables as of ``init_heads``, to a model directory; replace existing ones."""
    save_sealed(Path(directory) / FOLDER_NAME, variables, _abstract(card.architecture), card)


def remove_heads(directory: str | Path) -> None:
    """Remove the heads of a model directory, if it has any."""
    if has_heads(directory):
        shutil.rmtree(Path(directory) / FOLDER_NAME)


def has_heads(directory: str | Path) -> bool:
    """Return True if a model directory has detector heads."""
    return (Path(directory) / FOLDER_NAME).exists()


def has_pyramid(directory: str | Path) -> bool:
    """Return True if a model directory has heads on a pyramid, which propose regions themselves.

    Raises:
        CheckpointMismatch: as ``load_heads``.
    """
    return has_heads(directory) and load_heads_card(directory).architecture.pyramid is not None


def load_heads(directory: str | Path) -> tuple[dict, HeadsCard]:
    """Read the heads of a model directory: variables as of ``init_heads``, and the card.

    Raises:
        CheckpointMismatch: there are no complete heads, or they do not fit the card.
    """
    card = load_heads_card(directory)
    return load_sealed(Path(directory) / FOLDER_NAME, _abstract, card), card


def load_heads_card(directory: str | Path) -> HeadsCard:
    """Read the card of the heads of a model directory.

    Raises:
        CheckpointMismatch: as ``load_heads``.
    """
    folder = Path(directory) / FOLDER_NAME
    path = folder / FILE_NAME
    if not path.is_file():
        raise CheckpointMismatch(
            f"{directory}: expected the heads of a detector in {FOLDER_NAME}/ with {FILE_NAME}; "
            "train one with configs/train_detector.py (a folder without a card was never finished)"
        )
    require_intact(folder, {FILE_NAME})
    return HeadsCard.from_json(read_card(path), path)
