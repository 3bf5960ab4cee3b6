"""``card.json``: architecture and origin of a model directory.

Format 2 of a model: {"format": 2, "architecture": {"image": {"kind": "resnet", fields of
ResNetConfig}, "text": {"kind": "clip", fields of TextConfig}, "preprocessing": {fields of
Preprocessing}, other fields of CLIPConfig}, "preset": "RN50" or null, "scores": as in
``score_settings``, "source": {"file": name, "sha256": hex} or {"run": name}, "version": package
version, "parameters_sha256": hex}. The kinds are those of ``models.towers``. A field that a card
lacks has its default. ``parameters_sha256`` is that of ``model_checkpoint.variables_hash``; cards
of older versions have none.

Format 1 of a model had flat fields, see ``_Format1``; it stays readable. The cards of localizers
and heads have format 1, the fields of their config, and no preset.
"""

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import regionclip_jax
from regionclip_jax.artifacts.score_settings import scores_from_json, scores_to_json
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.presets import preset_name
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS, CLIPConfig, Family, kind_of
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.settings import ScoreSettings, UserError
from regionclip_jax.structures import Preprocessing

FILE_NAME = "card.json"
_MODEL_FORMAT = 2
_PART_FORMAT = 1
_AGAIN = "use the version of regionclip_jax that wrote it, or convert or export the model again"

Config = TypeVar("Config")
# (value of "architecture", its place for errors) -> config
Reader = Callable[[Any, str], Any]


class CheckpointMismatch(UserError):
    """Error: files of weights or embeddings do not fit their use, or each other."""


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Architecture and origin of a model directory.

    ``source`` is the origin of the weights: ``{"file": name, "sha256": hex}`` if converted,
    ``{"run": name}`` if trained. ``version`` is that of the package that wrote the directory.
    ``scores`` are the settings of its proposals and scores; a key that is None is not stated.
    Writing the directory sets ``parameters_sha256``.
    """

    architecture: CLIPConfig
    source: dict[str, str]
    version: str = regionclip_jax.__version__
    scores: ScoreSettings = ScoreSettings()
    parameters_sha256: str | None = dataclasses.field(default=None, compare=False)

    @property
    def preset(self) -> str | None:
        """Name of the preset with this architecture, if there is one."""
        return preset_name(self.architecture)

    @property
    def label(self) -> str:
        """Description of the architecture, for messages."""
        return self.preset or str(self.architecture)

    def to_json(self) -> str:
        architecture = architecture_to_json(self.architecture)
        scores = scores_to_json(self.scores)
        return _to_json(self, _MODEL_FORMAT, architecture, preset=self.preset, scores=scores)

    @classmethod
    def from_json(cls, text: str, path: str | Path = FILE_NAME) -> "ModelCard":
        """Parse a card; ``path`` is the file that errors name.

        Raises:
            CheckpointMismatch: not JSON, another format number, or other fields.
        """
        fields, content = from_card(text, path, {1: _from_format_1, 2: _from_format_2})
        try:
            scores = scores_from_json(content.get("scores", {}), ScoreSettings, f"{path}: scores")
        except ValueError as error:
            raise CheckpointMismatch(f"{error}; {_AGAIN}") from error
        return cls(**fields, scores=scores)


@dataclasses.dataclass(frozen=True)
class LocalizerCard:
    """Architecture and origin of a localizer, as ``ModelCard`` of a model."""

    architecture: LocalizerConfig
    # For a localizer trained here also the training classes.
    source: dict
    version: str = regionclip_jax.__version__
    parameters_sha256: str | None = dataclasses.field(default=None, compare=False)

    @property
    def label(self) -> str:
        """Description of the architecture, for messages."""
        return f"localizer, {self.architecture.variant}"

    def to_json(self) -> str:
        return part_to_json(self)

    @classmethod
    def from_json(cls, text: str, path: str | Path = FILE_NAME) -> "LocalizerCard":
        """Parse a card; ``path`` is the file that errors name.

        Raises:
            CheckpointMismatch: not JSON, another format number, or other architecture fields.
        """
        return cls(**part_from_card(text, path, LocalizerConfig))


def part_to_json(card) -> str:
    """Return the JSON of the card of a localizer or of heads."""
    return _to_json(card, _PART_FORMAT, dataclasses.asdict(card.architecture))


def part_from_card(text: str, path: str | Path, config_class: type) -> dict[str, Any]:
    """Return the fields of the card of a localizer or of heads, as ``from_card``."""
    readers = {_PART_FORMAT: functools.partial(_read_fields, config_class)}
    return from_card(text, path, readers)[0]


def architecture_to_json(config: CLIPConfig) -> dict:
    """Return the fields of format 2."""
    return dataclasses.asdict(config) | {
        "image": _tower_to_json(config.image, IMAGE_TOWERS),
        "text": _tower_to_json(config.text, TEXT_TOWERS),
    }


def architecture_from_json(values: dict, where: str) -> CLIPConfig:
    """Read the fields of any format, for files that do not state their format number.

    Args:
        where: file and key, for errors.

    Raises:
        CheckpointMismatch: other fields.
    """
    read = _from_format_1 if "vision_width" in values else _from_format_2
    return read(values, where)


def from_card(
    text: str, path: str | Path, readers: Mapping[int, Reader]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields that all cards have, by name, and the whole content of the JSON.

    Args:
        readers: for each format number, the reader of the architecture.

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
    if found not in readers:
        known = " or ".join(map(str, readers))
        raise CheckpointMismatch(
            f"{path}: expected model card format {known}, found {found!r}; use the version of "
            "regionclip_jax that wrote it, or convert the model again with this one"
        )
    fields = {
        "architecture": readers[found](content.get("architecture"), f"{path}: architecture"),
        "source": content.get("source", {}),
        "version": content.get("version", "unknown"),
        "parameters_sha256": content.get("parameters_sha256"),
    }
    return fields, content


def _to_json(card, number: int, architecture: dict, **more) -> str:
    content = {"format": number, "architecture": architecture, **more}
    content |= {"source": card.source, "version": card.version}
    if card.parameters_sha256 is not None:
        content["parameters_sha256"] = card.parameters_sha256
    return json.dumps(content, indent=2) + "\n"


def _tower_to_json(tower, table: dict[str, Family]) -> dict:
    return {"kind": kind_of(tower, table), **dataclasses.asdict(tower)}


def _from_format_2(values: Any, where: str) -> CLIPConfig:
    config = _read_fields(CLIPConfig, values, where)
    return dataclasses.replace(
        config,
        image=_read_tower(config.image, f"{where}.image", IMAGE_TOWERS),
        text=_read_tower(config.text, f"{where}.text", TEXT_TOWERS),
        preprocessing=_read_fields(Preprocessing, config.preprocessing, f"{where}.preprocessing"),
    )


def _read_tower(values: Any, where: str, table: dict[str, Family]):
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in table:
        raise CheckpointMismatch(
            f"{where}.kind: expected one of {sorted(table)}, found {kind!r}; {_AGAIN}"
        )
    fields = {name: value for name, value in values.items() if name != "kind"}
    return _read_fields(table[kind].config, fields, where)


@dataclasses.dataclass(frozen=True)
class _Format1:
    """Architecture of format 1. All its models have OpenAI's other numbers, today's defaults."""

    image_resolution: int
    vision_layers: tuple[int, int, int, int] | int
    vision_width: int
    # None means a ResNet.
    vision_patch_size: int | None
    vision_heads: int
    embed_dim: int
    vocab_size: int
    context_length: int
    text_width: int
    text_heads: int
    text_layers: int


def _from_format_1(values: Any, where: str) -> CLIPConfig:
    old = _read_fields(_Format1, values, where)
    if old.vision_patch_size is None:
        image = ResNetConfig(old.vision_layers, old.vision_width, old.vision_heads)
    else:
        image = ViTConfig(
            old.vision_patch_size, old.vision_layers, old.vision_width, old.vision_heads
        )
    text = TextConfig(
        old.vocab_size, old.context_length, old.text_width, old.text_heads, old.text_layers
    )
    return CLIPConfig(image, text, Preprocessing(old.image_resolution), old.embed_dim)


def _read_fields(config_class: type[Config], values: Any, where: str) -> Config:
    """Build a dataclass from JSON values; a field with a default may be missing.

    Raises:
        CheckpointMismatch: a field is missing, unknown, or has none of its choices.
    """
    fields = dataclasses.fields(config_class)
    known = {field.name for field in fields}
    # Older files lack the fields with a default.
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= known:
        given = sorted(values) if isinstance(values, dict) else values
        raise CheckpointMismatch(
            f"{where}: expected the fields {sorted(needed)}"
            + (f" and perhaps {sorted(known - needed)}" if known > needed else "")
            + f", found {given}; {_AGAIN}"
        )
    hints = typing.get_type_hints(config_class)
    for name, value in values.items():
        choices = typing.get_args(hints[name])
        if typing.get_origin(hints[name]) is typing.Literal and value not in choices:
            raise CheckpointMismatch(
                f"{where}.{name}: expected one of {list(choices)}, found {value!r}; {_AGAIN}"
            )
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
