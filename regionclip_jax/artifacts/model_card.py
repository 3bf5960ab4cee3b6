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
from typing import Any

import regionclip_jax
from regionclip_jax.artifacts.card_fields import AGAIN, CheckpointMismatch, read_fields
from regionclip_jax.artifacts.score_settings import scores_from_json, scores_to_json
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.presets import preset_name
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import (
    IMAGE_TOWERS,
    TEXT_TOWERS,
    CLIPConfig,
    Family,
    dense_kinds,
    kind_of,
)
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.settings import ScoreSettings
from regionclip_jax.settings.data import ResizeMethod
from regionclip_jax.structures import Preprocessing
from regionclip_jax.untrusted import MAX_JSON_BYTES, parse_json, read_bytes, short

FILE_NAME = "card.json"
_MODEL_FORMAT = 2
_PART_FORMAT = 1

# (value of "architecture", its place for errors) -> config
Reader = Callable[[Any, str], Any]


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
    def from_json(cls, text: str | bytes, path: str | Path = FILE_NAME) -> "ModelCard":
        """Parse a card; ``path`` is the file that errors name.

        Raises:
            CheckpointMismatch: not JSON, another format number, or other fields.
        """
        fields, content = from_card(text, path, {1: _from_format_1, 2: _from_format_2})
        try:
            scores = scores_from_json(content.get("scores", {}), ScoreSettings, f"{path}: scores")
        except ValueError as error:
            raise CheckpointMismatch(f"{error}; {AGAIN}") from error
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
    def from_json(cls, text: str | bytes, path: str | Path = FILE_NAME) -> "LocalizerCard":
        """Parse a card; ``path`` is the file that errors name.

        Raises:
            CheckpointMismatch: not JSON, another format number, or other architecture fields.
        """
        fields = part_from_card(text, path, LocalizerConfig)
        config = fields["architecture"]
        stages = (1, 2, 3, 4) if config.pyramid_channels is None else (4,)
        if len(config.blocks) not in stages:
            raise CheckpointMismatch(
                f"{path}: architecture.blocks: expected {' or '.join(map(str, stages))} numbers, "
                f"found {list(config.blocks)}; {AGAIN}"
            )
        return cls(**fields)


def part_to_json(card) -> str:
    """Return the JSON of the card of a localizer or of heads."""
    return _to_json(card, _PART_FORMAT, dataclasses.asdict(card.architecture))


def part_from_card(text: str | bytes, path: str | Path, config_class: type) -> dict[str, Any]:
    """Return the fields of the card of a localizer or of heads, as ``from_card``."""
    readers = {_PART_FORMAT: functools.partial(read_fields, config_class)}
    return from_card(text, path, readers)[0]


def architecture_to_json(config: CLIPConfig) -> dict:
    """Return the fields of format 2."""
    return dataclasses.asdict(config) | {
        "image": _tower_to_json(config.image, IMAGE_TOWERS),
        "text": _tower_to_json(config.text, TEXT_TOWERS),
    }


def architecture_from_json(values: Any, where: str) -> CLIPConfig:
    """Read the fields of any format, for files that do not state their format number.

    Args:
        where: file and key, for errors.

    Raises:
        CheckpointMismatch: other fields.
    """
    flat = isinstance(values, dict) and "vision_width" in values
    read = _from_format_1 if flat else _from_format_2
    return read(values, where)


def from_card(
    text: str | bytes, path: str | Path, readers: Mapping[int, Reader]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields that all cards have, by name, and the whole content of the JSON.

    Args:
        readers: for each format number, the reader of the architecture.

    Raises:
        CheckpointMismatch: as ``ModelCard.from_json``.
    """
    try:
        content = parse_json(text, path)
    except ValueError as error:
        raise CheckpointMismatch(f"{error}; {AGAIN}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if type(found) is not int or found not in readers:
        known = " or ".join(map(str, readers))
        raise CheckpointMismatch(
            f"{path}: expected model card format {known}, found {short(found)}; use the version of "
            "regionclip_jax that wrote it, or convert the model again with this one"
        )
    fields = {
        "source": content.get("source", {}),
        "version": content.get("version", "unknown"),
        "parameters_sha256": content.get("parameters_sha256"),
    }
    for name, kind in (("source", dict), ("version", str), ("parameters_sha256", str | None)):
        if not isinstance(fields[name], kind):
            raise CheckpointMismatch(f"{path}: {name}: found {short(fields[name])}; {AGAIN}")
    fields["architecture"] = readers[found](content.get("architecture"), f"{path}: architecture")
    return fields, content


def read_card(path: Path) -> bytes:
    """Return the content of a card.

    Raises:
        CheckpointMismatch: the file is larger than any card.
    """
    try:
        return read_bytes(path, MAX_JSON_BYTES)
    except ValueError as error:
        raise CheckpointMismatch(f"{error}; {AGAIN}") from error


def _to_json(card, number: int, architecture: dict, **more) -> str:
    content = {"format": number, "architecture": architecture, **more}
    content |= {"source": card.source, "version": card.version}
    if card.parameters_sha256 is not None:
        content["parameters_sha256"] = card.parameters_sha256
    return json.dumps(content, indent=2) + "\n"


def _tower_to_json(tower, table: dict[str, Family]) -> dict:
    return {"kind": kind_of(tower, table), **dataclasses.asdict(tower)}


def _from_format_2(values: Any, where: str) -> CLIPConfig:
    config = read_fields(CLIPConfig, values, where)
    config = dataclasses.replace(
        config,
        image=_read_tower(config.image, f"{where}.image", IMAGE_TOWERS),
        text=_read_tower(config.text, f"{where}.text", TEXT_TOWERS),
        preprocessing=read_fields(Preprocessing, config.preprocessing, f"{where}.preprocessing"),
    )
    methods = typing.get_args(ResizeMethod)
    if config.preprocessing.resize not in methods:
        raise CheckpointMismatch(
            f"{where}.preprocessing.resize: expected one of {list(methods)}, found "
            f"{short(config.preprocessing.resize)}; {AGAIN}"
        )
    if config.normalize_map:
        require_embeddings(config.image, where, AGAIN)
    require_heads(config, where, AGAIN)
    return config


def require_embeddings(tower: Any, where: str, remedy: str) -> None:
    """Refuse ``normalize_map`` with an image tower whose map has no embeddings.

    Raises:
        CheckpointMismatch: names the kind of the tower.
    """
    if (kind := kind_of(tower, IMAGE_TOWERS)) not in dense_kinds():
        raise CheckpointMismatch(
            f"{where}: normalize_map: expected false for an image tower of the kind {kind!r}, "
            f"whose map has no embeddings, found true; {remedy}"
        )


def require_heads(config: CLIPConfig, where: str, remedy: str) -> None:
    """Refuse attention heads that do not divide the channels of a tower.

    Args:
        where: file, and perhaps key, for errors.
        remedy: advice in errors.

    Raises:
        CheckpointMismatch: see above.
    """
    image_width = config.image.crop_channels or getattr(config.image, "width", 0)
    for part, width in (("image", image_width), ("text", config.text.width)):
        heads = getattr(getattr(config, part), "heads", 1)
        if heads < 1 or width % heads:
            raise CheckpointMismatch(
                f"{where}: {part} tower: expected a number of heads that divides its {width} "
                f"channels, found {heads}; {remedy}"
            )


def _read_tower(values: Any, where: str, table: dict[str, Family]):
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in table:
        raise CheckpointMismatch(
            f"{where}.kind: expected one of {sorted(table)}, found {short(kind)}; {AGAIN}"
        )
    fields = {name: value for name, value in values.items() if name != "kind"}
    return read_fields(table[kind].config, fields, where)


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
    old = read_fields(_Format1, values, where)
    if isinstance(old.vision_layers, int) == (old.vision_patch_size is None):
        raise CheckpointMismatch(
            f"{where}.vision_layers: expected four numbers of a ResNet, or one of a ViT and "
            f"its vision_patch_size, found {old.vision_layers}; {AGAIN}"
        )
    if old.vision_patch_size is None:
        image = ResNetConfig(old.vision_layers, old.vision_width, old.vision_heads)
    else:
        image = ViTConfig(
            old.vision_patch_size, old.vision_layers, old.vision_width, old.vision_heads
        )
    text = TextConfig(
        old.vocab_size, old.context_length, old.text_width, old.text_heads, old.text_layers
    )
    config = CLIPConfig(image, text, Preprocessing(old.image_resolution), old.embed_dim)
    require_heads(config, where, AGAIN)
    return config
