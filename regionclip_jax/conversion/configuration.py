"""Content of the configuration files beside a CLIP's checkpoint, and its use with the tensors."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from regionclip_jax.artifacts.card_fields import CheckpointMismatch, require_plausible
from regionclip_jax.conversion.json_object import REMEDY
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.structures import Preprocessing
from regionclip_jax.untrusted import short

# Fields that the tensors determine too.
_SIZES = ("width", "layers", "patch_size", "vocab_size", "context_length")


class Tower(NamedTuple):
    """Stated numbers of a tower.

    Attributes:
        fields: of the tower's config; those that the config lacks are not used.
        mlp_width: hidden channels of the blocks; None: not stated.
    """

    fields: dict[str, Any]
    mlp_width: int | None


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Numbers of the configuration files beside a checkpoint."""

    # The file of the architecture.
    path: Path
    image: Tower
    text: Tower
    embed_dim: int
    # Side of the images of the positional embedding, in pixels.
    resolution: int
    # Its resolution is not used.
    preprocessing: Preprocessing
    # Name of the tokenizer, if there is one.
    tokenizer: str | None

    def completed(self, config: CLIPConfig, *, image: bool, text: bool) -> CLIPConfig:
        """Return ``config`` with the stated numbers of the towers of this checkpoint.

        Args:
            config: architecture inferred from the tensors.
            image, text: whether the tower is of this checkpoint.

        Raises:
            CheckpointMismatch: a stated size differs from the tensors, or a number is implausible.
        """
        parts: dict[str, Any] = {}
        self._require("embedding width", self.embed_dim, config.embed_dim)
        if text:
            parts["text"] = self._tower("text", self.text, config.text)
        if image:
            parts["image"] = self._tower("image", self.image, config.image)
            size = config.preprocessing.resolution
            cells, stated_cells = map(config.image.grid_size, (size, self.resolution))
            self._require(
                f"image tower: cells of a side of {self.resolution} pixels", stated_cells, cells
            )
            parts["preprocessing"] = dataclasses.replace(self.preprocessing, resolution=size)
        config = dataclasses.replace(config, **parts)
        require_plausible(config, str(self.path), REMEDY)
        return config

    def _tower(self, name: str, stated: Tower, tower):
        fields = {field.name for field in dataclasses.fields(tower)}
        numbers = {key: value for key, value in stated.fields.items() if key in fields}
        for key in _SIZES:
            if key in numbers:
                self._require(f"{name} tower: {key}", numbers[key], getattr(tower, key))
        if "eps" in fields and stated.mlp_width is not None:  # a transformer
            what = f"{name} tower: hidden channels of the MLP"
            self._require(what, stated.mlp_width, tower.mlp_width or 4 * tower.width)
        return dataclasses.replace(tower, **numbers)

    def _require(self, what: str, found, expected) -> None:
        if found != expected:
            raise CheckpointMismatch(
                f"{self.path}: {what}: expected {expected}, as in the tensors, found "
                f"{short(found)}; {REMEDY}"
            )
