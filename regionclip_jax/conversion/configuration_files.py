"""Numbers of a CLIP that its tensors do not determine, from the files beside a checkpoint.

Hugging Face and open_clip state heads, activations, eps of the layer norms, mean, standard
deviation and interpolation in JSON, and repeat the sizes of the tensors. A file that states other
sizes belongs to another checkpoint and is refused. Without a file, OpenAI's numbers are those of
OpenAI's archives, of RegionCLIP's files and of other ResNets, none of which was published with
another activation, and EVA-02-CLIP's are those of its names. For any other checkpoint the user
chooses.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from regionclip_jax.conversion import (
    eva_keys,
    huggingface_configuration,
    huggingface_keys,
    open_clip_configuration,
    regionclip_keys,
)
from regionclip_jax.conversion.choices import Choice
from regionclip_jax.conversion.configuration import Configuration
from regionclip_jax.conversion.json_object import JsonObject
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.towers import CLIPConfig

# Endings of files that the libraries publish together with a configuration file.
_PUBLISHED_WITH_ONE = (".safetensors", ".bin")
# Numbers beside the weights in OpenAI's archives.
_OPENAI_NUMBERS = {"input_resolution", "context_length", "vocab_size"}


class Completed(NamedTuple):
    """Config with all numbers of a checkpoint.

    Attributes:
        tokenizer: its name, if it is stated.
        notes: for the report.
        chosen: the numbers are those of the user's choice.
    """

    config: CLIPConfig
    tokenizer: str | None = None
    notes: tuple[str, ...] = ()
    chosen: bool = False


def complete_config(
    config: CLIPConfig,
    path: Path,
    tensors: dict[str, np.ndarray],
    choice: Choice,
    *,
    image: bool,
    text: bool,
) -> Completed:
    """Complete a config with the numbers of the files beside a checkpoint, or of a choice.

    Args:
        config: architecture inferred from the tensors.
        path: the checkpoint.
        tensors: by the file's own names.
        choice: of the user, for a checkpoint that leaves numbers open.
        image, text: whether the tower is of this checkpoint.

    Raises:
        CheckpointMismatch: the files are damaged, of another checkpoint, or of a model that no
            tower here computes; or there are none, and the choice is missing or does not fit.
    """
    huggingface = huggingface_keys.is_huggingface(tensors)
    found = _read_beside(path, huggingface)
    what = f"{path.name}: heads, activation, eps and pixels are those of"
    if found is not None:
        completed = found.completed(config, image=image, text=text)
        return Completed(completed, found.tokenizer, (f"{what} {found.path.name}",))
    if _is_openai_or_regionclip(tensors):
        return Completed(config)
    if choice.flag is None and eva_keys.is_eva(tensors):
        return Completed(config, notes=(f"{path.name}: {eva_keys.NOTE}",))
    if choice.flag is None and _is_plain_resnet(path, config, tensors):
        note = (
            f"{path.name}: no {open_clip_configuration.FILE_NAME} beside it; assumed OpenAI's "
            "quick GELU, eps, heads of 64 channels, mean and standard deviation, which all "
            "published CLIPs with a ResNet have"
        )
        return Completed(config, notes=(note,))
    completed = choice.completed(config, path, image=image, text=text)
    return Completed(completed, notes=(f"{what} {choice.flag}",), chosen=True)


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
    return tensors.keys() >= _OPENAI_NUMBERS or any(name.startswith(prefixes) for name in tensors)


def _is_plain_resnet(path: Path, config: CLIPConfig, tensors: dict[str, np.ndarray]) -> bool:
    """Return whether a checkpoint is of a ResNet, and was not published with a configuration."""
    return (
        isinstance(config.image, ResNetConfig)
        # With --text-from, its text tower may be that of a ViT.
        and "visual.class_embedding" not in tensors
        and not huggingface_keys.is_huggingface(tensors)
        and path.suffix not in _PUBLISHED_WITH_ONE
    )
