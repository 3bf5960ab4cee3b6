"""Architecture of a CLIP, and the table of tower families.

A family is a frozen dataclass of sizes and the flax module built from it, both in one file. The
module of an image tower takes ``(config, resolution, embed_dim, frozen_norm, dtype,
remat)``, that of a text tower ``(config, embed_dim, dtype, remat)`` and maps
token ids to embeddings. None of them normalises its embeddings.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Int

from regionclip_jax.models.eva_transformer import EVAConfig, EVATransformer
from regionclip_jax.models.modified_resnet import ModifiedResNet, ResNetConfig
from regionclip_jax.models.siglip_image import SigLIPImageConfig, SigLIPImageTower
from regionclip_jax.models.siglip_text import SigLIPTextConfig, SigLIPTextTower
from regionclip_jax.models.text_transformer import TextConfig, TextTransformer
from regionclip_jax.models.vision_transformer import VisionTransformer, ViTConfig
from regionclip_jax.structures import ImageFeatures, Preprocessing


@runtime_checkable
class ImageTowerConfig(Protocol):
    """Sizes of an image tower, and the facts that its users need without building it."""

    # Canvas pixels per cell of the feature map.
    @property
    def stride(self) -> int: ...

    # Channels of the module's ``crop_features``; None: a tower without maps for a mask head.
    @property
    def crop_channels(self) -> int | None: ...

    # True: the tower can be trained from random weights with live batch norms.
    @property
    def has_batch_norms(self) -> bool: ...

    def crop_size(self, resolution: int) -> int:
        """Return the side of the RoIAlign crops that ``ImageTower.embed_crops`` takes."""
        ...


@runtime_checkable
class ImageTower(Protocol):
    """Methods of an image tower's module.

    One with ``crop_channels`` also has the two halves of ``embed_crops``: ``crop_features`` and
    ``pool_crops`` (``models.modified_resnet``).
    """

    def features(
        self, pixels: Float[Array, "B H W 3"], sizes: Int[Array, "B 2"] | None
    ) -> ImageFeatures:
        """Compute the features of normalised pixels, for images in the corners of canvases."""
        ...

    def embed_crops(self, crops: Float[Array, "N P P channels"]) -> Float[Array, "N D"]:
        """Embed RoIAlign crops of the features' map."""
        ...


@runtime_checkable
class DenseImageTower(ImageTower, Protocol):
    """Image tower whose cells are embeddings; ``embed_crops`` averages them."""

    def project(self, x: Float[Array, "... channels"]) -> Float[Array, "... D"]:
        """Map cells of the features' map to embeddings."""
        ...


@runtime_checkable
class BlockImageTower(DenseImageTower, Protocol):
    """Image tower of patches whose blocks have maps, for a feature pyramid."""

    def features_and_blocks(
        self,
        pixels: Float[Array, "B H W 3"],
        sizes: Int[Array, "B 2"] | None,
        blocks: tuple[int, ...],
    ) -> tuple[ImageFeatures, list[Float[Array, "B h w channels"]]]:
        """Compute the features, and the patches' outputs of blocks, numbered from 0.

        The output of the last block is that without attention, before any norm, as in the dense
        form.
        """
        ...


@runtime_checkable
class TextTowerConfig(Protocol):
    """Sizes of a text tower, and the facts that its users need without building it."""

    context_length: int
    width: int
    # Name in ``text.tokenizer``.
    tokenizer: str

    def num_read(self, tokens: Int[np.ndarray, "N L"]) -> int:
        """Return the number of leading columns of ``tokens`` that decide the embeddings."""
        ...


class Family(NamedTuple):
    """Class of a tower's sizes, and module built from them."""

    config: type
    module: type[nn.Module]


# The names stand in the cards of model directories, so an entry is never renamed or removed.
IMAGE_TOWERS: dict[str, Family] = {
    "resnet": Family(ResNetConfig, ModifiedResNet),
    "vit": Family(ViTConfig, VisionTransformer),
    "eva": Family(EVAConfig, EVATransformer),
    "siglip": Family(SigLIPImageConfig, SigLIPImageTower),
}
TEXT_TOWERS: dict[str, Family] = {
    "clip": Family(TextConfig, TextTransformer),
    "siglip": Family(SigLIPTextConfig, SigLIPTextTower),
}


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Architecture of a CLIP model, enough to build it; recorded in a model directory's card."""

    image: ImageTowerConfig
    text: TextTowerConfig
    preprocessing: Preprocessing
    # Width D shared by image and text embeddings.
    embed_dim: int
    # True: logits have a learned summand beside their learned factor.
    logit_bias: bool = False
    # True: a region is the average of its cells' embeddings at unit length, as CLIPSelf trains it,
    # and the image tower is a ``DenseImageTower``. False: the embedding of its crop of the map.
    normalize_map: bool = False

    @property
    def crop_size(self) -> int:
        """Side of the RoIAlign crops of the image tower."""
        return self.image.crop_size(self.preprocessing.resolution)


def dense_kinds() -> list[str]:
    """Return the families of image towers whose module is a ``DenseImageTower``."""
    return [
        name for name, family in IMAGE_TOWERS.items() if issubclass(family.module, DenseImageTower)
    ]


def block_kinds() -> list[str]:
    """Return the families of image towers whose module is a ``BlockImageTower``."""
    return [
        name for name, family in IMAGE_TOWERS.items() if issubclass(family.module, BlockImageTower)
    ]


def num_blocks(tower: ImageTowerConfig) -> int:
    """Return the number of blocks that have maps; 0 for a family without such blocks."""
    return tower.layers if kind_of(tower, IMAGE_TOWERS) in block_kinds() else 0


def kind_of(tower: ImageTowerConfig | TextTowerConfig, table: dict[str, Family]) -> str:
    """Return the name of a tower's family in ``IMAGE_TOWERS`` or ``TEXT_TOWERS``.

    Raises:
        KeyError: the class is missing from the table.
    """
    for kind, family in table.items():
        if type(tower) is family.config:
            return kind
    raise KeyError(f"{type(tower).__name__}: add it to the table of models/towers.py")
