"""``card.json``: architecture and origin of a model directory.

Format 1: {"format": 1, "architecture": {fields of CLIPConfig}, "preset": "RN50" or null,
"source": {"file": name, "sha256": hex} or {"run": name}, "version": package version}. A localizer's
card has the fields of LocalizerConfig and no preset.
"""

import dataclasses
import json
from pathlib import Path

import regionclip_jax
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.presets import CLIPConfig, preset_name

FORMAT = 1
FILE_NAME = "card.json"


class CheckpointMismatch(ValueError):
    """Error: files of weights or embeddings do not fit their use, or each other."""


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Architecture and origin of a model directory.

    ``source`` is the origin of the weights: ``{"file": name, "sha256": hex}`` if converted,
    ``{"run": name}`` if trained. ``version`` is that of the package that wrote the directory.
    """

    architecture: CLIPConfig
    source: dict[str, str]
    version: str = regionclip_jax.__version__

    @property
    def preset(self) -> str | None:
        """Name of the preset with this architecture, if there is one."""
        return preset_name(self.architecture)

    @property
    def label(self) -> str:
        """Description of the architecture, for messages."""
        return self.preset or str(self.architecture)

    def to_json(self) -> str:
        return to_card(self, preset=self.preset)

    @classmethod
    def from_json(cls, text: str, path: str | Path = FILE_NAME) -> "ModelCard":
        """Parse a card; ``path`` is the file that errors name.

        Raises:
            CheckpointMismatch: not JSON, another format number, or other architecture fields.
        """
        return cls(*from_card(text, path, CLIPConfig))


@dataclasses.dataclass(frozen=True)
class LocalizerCard:
    """Architecture and origin of a localizer, as ``ModelCard`` of a model."""

    architecture: LocalizerConfig
    # For a localizer trained here also the training classes.
    source: dict
    version: str = regionclip_jax.__version__

    @property
    def label(self) -> str:
        """Description of the architecture, for messages."""
        return f"localizer, {self.architecture.variant}"

    def to_json(self) -> str:
        return to_card(self)

    @classmethod
    def from_json(cls, text: str, path: str | Path = FILE_NAME) -> "LocalizerCard":
        """Parse a card; ``path`` is the file that errors name.

        Raises:
            CheckpointMismatch: not JSON, another format number, or other architecture fields.
        """
        return cls(*from_card(text, path, LocalizerConfig))


def to_card(card, **more) -> str:
    """Return the JSON of a card, a dataclass of architecture, source and version."""
    architecture = dataclasses.asdict(card.architecture)
    content = {"format": FORMAT, "architecture": architecture, **more}
    content |= {"source": card.source, "version": card.version}
    return json.dumps(content, indent=2) + "\n"


def from_card(text: str, path: str | Path, config_class: type) -> tuple:
    """Parse architecture, source and version from a card's JSON.

    Raises:
        CheckpointMismatch: as ``ModelCard.from_json``.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointMismatch(
            f"{path}: expected JSON ({error}); convert or export the model again"
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise CheckpointMismatch(
            f"{path}: expected model card format {FORMAT}, found {found!r}; use the version of "
            "regionclip_jax that wrote it, or convert the model again with this one"
        )
    fields = dataclasses.fields(config_class)
    known = {field.name for field in fields}
    # Older directories lack the fields with a default.
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    architecture = content.get("architecture")
    if not isinstance(architecture, dict) or not needed <= set(architecture) <= known:
        given = sorted(architecture) if isinstance(architecture, dict) else architecture
        raise CheckpointMismatch(
            f"{path}: architecture: expected the fields {sorted(needed)}"
            + (f" and perhaps {sorted(known - needed)}" if known > needed else "")
            + f", found {given}; use the version of regionclip_jax that wrote it, or convert or "
            "export the model again"
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()}
    return config_class(**values), content.get("source", {}), content.get("version", "unknown")
