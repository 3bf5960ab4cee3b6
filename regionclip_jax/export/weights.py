"""Weights of a model directory as files of open_clip, transformers and the reference.

The names are those of ``conversion``, read the other way, so ``regionclip convert`` of the files
gives the same numbers, bit for bit. All numbers are fp32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.artifacts.detector_heads import has_heads, has_pyramid, load_heads
from regionclip_jax.artifacts.localizer_checkpoint import FOLDER_NAME, load_localizer
from regionclip_jax.artifacts.model_checkpoint import load_card, load_model
from regionclip_jax.conversion import (
    clip_keys,
    detector_keys,
    eva_keys,
    huggingface_configuration,
    huggingface_keys,
    localizer_keys,
    open_clip_configuration,
    regionclip_keys,
    siglip_configuration,
    siglip_keys,
)
from regionclip_jax.conversion.layouts import to_tensors
from regionclip_jax.conversion.safetensors import write_safetensors
from regionclip_jax.conversion.torch_archive import write_torch_archive
from regionclip_jax.export.tokenizer_files import tokenizer_files
from regionclip_jax.files import replaced_file
from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.modified_resnet import ResNetConfig, layer4_channels
from regionclip_jax.models.presets import openai_heads
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import IMAGE_TOWERS, CLIPConfig, kind_of
from regionclip_jax.models.vision_transformer import ViTConfig

OPEN_CLIP_WEIGHTS, HUGGINGFACE_WEIGHTS = "open_clip_model.safetensors", "model.safetensors"

Tensors = dict[str, np.ndarray]


class Exported(NamedTuple):
    """Report of an export: the written files, the number of tensors, and notes."""

    files: tuple[Path, ...]
    num_tensors: int
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Return the report as text."""
        sizes = [f"{path}: {path.stat().st_size:,} bytes" for path in self.files]
        lines = [f"tensors: {self.num_tensors}", *sizes]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def export_weights(directory: str | Path, output_format: str, output: str | Path) -> Exported:
    """Write the weights of a model directory in a format of ``WEIGHT_FORMATS``.

    Args:
        directory: a model directory.
        output_format: "openclip" or "safetensors": ``output`` is a directory; "regionclip_pth": a
            file.

    Raises:
        CheckpointMismatch: the model is not complete, or the format has no such architecture; the
            message names the formats that do.
    """
    directory, output = Path(directory), Path(output)
    if has_pyramid(directory):
        raise CheckpointMismatch(
            f"{directory}: expected a model whose heads other programs have, found heads on a "
            "feature pyramid; export the model directory it was trained from"
        )
    config = load_card(directory).architecture
    write = WEIGHT_FORMATS[output_format]
    return write(directory, config, output)


def formats_of(config: CLIPConfig) -> list[str]:
    """Return the formats that have the kinds of towers of a model."""
    if siglip_configuration.is_siglip(config) or isinstance(config.image, ViTConfig):
        return ["openclip", "safetensors"]
    return (
        ["openclip", "regionclip_pth"] if isinstance(config.image, ResNetConfig) else ["openclip"]
    )


def _write_open_clip(directory: Path, config: CLIPConfig, output: Path) -> Exported:
    if siglip_configuration.is_siglip(config):
        content = siglip_configuration.to_open_clip_json(config)
        origin, rename = siglip_keys.origin, siglip_keys.to_open_clip
    elif isinstance(config.image, EVAConfig):
        content = open_clip_configuration.to_json(config)
        origin, rename = eva_keys.origin, eva_keys.to_open_clip
    else:
        content = open_clip_configuration.to_json(config)
        origin, rename = clip_keys.origin, dict
    files = {open_clip_configuration.FILE_NAME: _json(content)}
    if siglip_configuration.is_siglip(config):
        files |= tokenizer_files(directory, config)
    tensors = rename(to_tensors(load_model(directory)[0], origin))
    return _write_folder(directory, config, output, files, OPEN_CLIP_WEIGHTS, tensors)


def _write_huggingface(directory: Path, config: CLIPConfig, output: Path) -> Exported:
    rename: Callable[[Tensors], Tensors]
    if siglip_configuration.is_siglip(config):
        model_type, content = "siglip", siglip_configuration.to_huggingface_json(config)
        origin, rename = siglip_keys.origin, siglip_keys.to_huggingface
    elif isinstance(config.image, ViTConfig) and isinstance(config.text, TextConfig):
        model_type, content = "clip", huggingface_configuration.clip_to_json(config)
        origin, rename = clip_keys.origin, huggingface_keys.from_openai
    else:
        kind = kind_of(config.image, IMAGE_TOWERS)
        raise CheckpointMismatch(
            f"{directory}: format safetensors: expected a ViT or a SigLIP, found an image tower of "
            f"the kind {kind!r}, which transformers does not have; choose --format "
            f"{' or '.join(formats_of(config))}"
        )
    if config.logit_bias != (model_type == "siglip"):
        raise CheckpointMismatch(
            f"{directory}: format safetensors: expected a logit bias of a SigLIP and none of a "
            f"CLIP, as transformers has them, found logit_bias = {config.logit_bias}; choose "
            "--format openclip"
        )
    preprocessing = huggingface_configuration.preprocessing_to_json(
        config.preprocessing, model_type
    )
    files = {
        huggingface_configuration.FILE_NAME: _json(content),
        huggingface_configuration.PREPROCESSORS[0]: _json(preprocessing),
        **tokenizer_files(directory, config),
    }
    tensors = rename(to_tensors(load_model(directory)[0], origin))
    return _write_folder(directory, config, output, files, HUGGINGFACE_WEIGHTS, tensors)


def _write_folder(
    directory: Path,
    config: CLIPConfig,
    output: Path,
    files: dict[str, bytes],
    weights: str,
    tensors: Tensors,
) -> Exported:
    if output.resolve() == directory.resolve():
        raise CheckpointMismatch(
            f"{output}: expected another directory than that of the model; choose another --output"
        )
    write_safetensors(output / weights, tensors)
    for name, content in files.items():
        with replaced_file(output / name) as file:
            file.write(content)
    notes = []
    parts = [FOLDER_NAME] if (directory / FOLDER_NAME).exists() else []
    parts += ["detector heads"] if has_heads(directory) else []
    if parts:
        notes.append(f"{' and '.join(parts)} left out: the format has whole images and texts only")
    if config.normalize_map:
        notes.append("normalize_map left out: the format has no regions")
    notes += _position_notes(config, weights)
    paths = tuple(output / name for name in (weights, *files))
    return Exported(paths, len(tensors), tuple(notes))


def _position_notes(config: CLIPConfig, weights: str) -> list[str]:
    """Return a note if the library resizes positions by another rule than the model."""
    rule = getattr(config.image, "position_resize", None)
    theirs = "bicubic_antialiased" if weights == OPEN_CLIP_WEIGHTS else "bicubic"
    if rule in (None, theirs):
        return []
    side = config.preprocessing.resolution
    return [
        f"for other images than {side} x {side} the library resizes positions by {theirs}, this "
        f"model by {rule}"
    ]


def _write_regionclip(directory: Path, config: CLIPConfig, output: Path) -> Exported:
    _require_reference(directory, config)
    if output.suffix != ".pth":
        raise CheckpointMismatch(f"--output: expected a name that ends in .pth, found {output}")
    tensors = regionclip_keys.from_openai(to_tensors(load_model(directory)[0], clip_keys.origin))
    notes = ["class embeddings are left out: the reference reads them from its TEXT_EMB_PATH"]
    if has_heads(directory):
        heads, _ = load_heads(directory)
        tensors |= detector_keys.from_heads(heads["params"])
    if (directory / FOLDER_NAME).exists():
        variables, card = load_localizer(directory)
        localizer = to_tensors(variables, localizer_keys.origins(card.architecture))
        tensors |= localizer_keys.to_offline_names(localizer)
        notes.append(f"the localizer has the names offline_*: {card.architecture.variant}")
    write_torch_archive(output, tensors)
    return Exported((output,), len(tensors), tuple(notes))


def _require_reference(directory: Path, config: CLIPConfig) -> None:
    """Refuse a model that the reference cannot build from its sizes."""
    image, text = config.image, config.text
    if not (isinstance(image, ResNetConfig) and isinstance(text, TextConfig)):
        raise CheckpointMismatch(
            f"{directory}: format regionclip_pth: expected a ResNet, the only tower that the "
            f"reference trains, found the kind {kind_of(image, IMAGE_TOWERS)!r}; choose --format "
            f"{' or '.join(formats_of(config))}"
        )
    own = (image.heads, text.heads, text.activation, text.eps, text.mlp_width, config.logit_bias)
    plain = TextConfig(0, 0, 0, 0, 0)
    heads = openai_heads(layer4_channels(image.width)), openai_heads(text.width)
    theirs = (*heads, plain.activation, plain.eps, plain.mlp_width, False)
    if own != theirs:
        raise CheckpointMismatch(
            f"{directory}: format regionclip_pth: expected {theirs} for (heads of the image tower, "
            "heads of the text tower, activation, eps, MLP width, logit bias), which the reference "
            f"does not read from a file, found {own}; choose --format openclip"
        )


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


# Name of a format -> its writer: (model directory, architecture, output) -> report.
WEIGHT_FORMATS: dict[str, Callable[[Path, CLIPConfig, Path], Exported]] = {
    "openclip": _write_open_clip,
    "safetensors": _write_huggingface,
    "regionclip_pth": _write_regionclip,
}
