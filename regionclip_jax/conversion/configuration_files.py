"""Numbers of a CLIP that its tensors do not determine, from the files beside a checkpoint.

Hugging Face and open_clip state heads, activations, eps of the layer norms, mean, standard
deviation and interpolation in JSON, and repeat the sizes of the tensors. A file that states other
sizes belongs to another checkpoint and is refused. Without a file, OpenAI's numbers are assumed
only where the checkpoint can be OpenAI's or RegionCLIP's, and EVA-02-CLIP's where it has its names.
"""

from pathlib import Path

import numpy as np

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion import (
    eva_keys,
    huggingface_configuration,
    huggingface_keys,
    open_clip_configuration,
    regionclip_keys,
)
from regionclip_jax.conversion.configuration import Configuration
from regionclip_jax.conversion.json_object import JsonObject
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig

# Endings of files that the libraries publish together with a configuration file.
_PUBLISHED_WITH_ONE = (".safetensors", ".bin")
_WIDEST_VIT = max(p.image.width for p in PRESETS.values() if isinstance(p.image, ViTConfig))


def complete_config(
    config: CLIPConfig, path: Path, tensors: dict[str, np.ndarray], *, image: bool, text: bool
) -> tuple[CLIPConfig, str | None, list[str]]:
    """Complete a config with the numbers of the files beside a checkpoint.

    Args:
        config: architecture inferred from the tensors.
        path: the checkpoint.
        tensors: by the file's own names.
        image, text: whether the tower is of this checkpoint.

    Returns:
        The config, the name of the tokenizer if it is stated, and notes for the report.

    Raises:
        CheckpointMismatch: the files are damaged, of another checkpoint, or of a model that no
            tower here computes; or there are none, and the numbers need not be OpenAI's.
    """
    huggingface = huggingface_keys.is_huggingface(tensors)
    found = _read_beside(path, huggingface)
    if found is not None:
        completed = found.completed(config, image=image, text=text)
        note = f"{path.name}: heads, activation, eps and pixels are those of {found.path.name}"
        notes = [note]
        return completed, found.tokenizer, notes
    if _is_openai_or_regionclip(tensors):
        return config, None, []
    if eva_keys.is_eva(tensors):
        return config, None, [f"{path.name}: {eva_keys.NOTE}"]
    _require_openai_like(path, config, image, huggingface)
    note = (
        f"{path.name}: no {open_clip_configuration.FILE_NAME} or "
        f"{huggingface_configuration.FILE_NAME} beside it; assumed OpenAI's quick GELU, eps, heads "
        "of 64 channels, mean and standard deviation"
    )
    return config, None, [note]


def _read_beside(path: Path, huggingface: bool) -> Configuration | None:
    ours, theirs = open_clip_configuration, huggingface_configuration
    for library in (theirs, ours) if huggingface else (ours, theirs):
        beside = path.with_name(library.FILE_NAME)
        if beside.is_file():
            content = JsonObject.read(beside)
            if huggingface or library is ours or theirs.is_clip(content):
                return library.read(content)
    return None


def _is_openai_or_regionclip(tensors: dict[str, np.ndarray]) -> bool:
    """Return whether the names are those of OpenAI's archives or of RegionCLIP's files."""
    prefixes = (*regionclip_keys.TOWERS.values(), "lang_encoder.")
    return "input_resolution" in tensors or any(name.startswith(prefixes) for name in tensors)


def _require_openai_like(path: Path, config: CLIPConfig, image: bool, huggingface: bool) -> None:
    name = (huggingface_configuration if huggingface else open_clip_configuration).FILE_NAME
    reason = ""
    if huggingface or path.suffix in _PUBLISHED_WITH_ONE:
        reason = "heads, activation and eps are not in the tensors"
    elif image and isinstance(config.image, ViTConfig) and config.image.width > _WIDEST_VIT:
        reason = f"no ViT of OpenAI is {config.image.width} channels wide"
    if reason:
        raise CheckpointMismatch(
            f"{path}: expected {name} beside it ({reason}), found no such file; download it from "
            "the model's page into this directory, or give OpenAI's own .pt file"
        )
