"""Infer an architecture from the shapes of tensors, and refuse one without use here.

Source: docs/reference/towers.md#variants, docs/reference/checkpoints.md#lsj-localizer. Names and
shapes determine all but heads, activations, eps and preprocessing, which are OpenAI's here.
"""

import math
import re
from pathlib import Path

import numpy as np

from regionclip_jax.artifacts.card_fields import CheckpointMismatch, require_plausible
from regionclip_jax.conversion.localizer_keys import BACKBONE, HEAD, trunk_prefix
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.modified_resnet import ResNetConfig, layer4_channels
from regionclip_jax.models.presets import openai_heads
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig, TextTowerConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.structures import Preprocessing
from regionclip_jax.text.clip_tokenizer import MIN_LENGTH
from regionclip_jax.text.tokenizer import TokenizerSource
from regionclip_jax.untrusted import short

_REMEDY = "give a whole checkpoint of one model"


def infer_config(tensors: dict[str, np.ndarray], file_name: str) -> CLIPConfig:
    """Infer a CLIP's architecture from tensors by OpenAI's names; ``file_name`` is for errors.

    Raises:
        CheckpointMismatch: a tensor that determines the architecture is missing or has a wrong
            rank.
    """

    def shape(name: str, num_dims: int) -> tuple[int, ...]:
        return require_shape(tensors, name, num_dims, f"{file_name} as a CLIP (by OpenAI's names)")

    def count(pattern: str) -> int:
        return count_blocks(tensors, pattern, file_name)

    if "visual.proj" in tensors or "visual.class_embedding" in tensors:
        width, _, _, patch = shape("visual.conv1.weight", 4)
        grid = grid_side(shape("visual.positional_embedding", 2)[0], file_name)
        layers = count(r"visual\.transformer\.resblocks\.([0-9]+)\.")
        hidden = shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
        mlp_width = _mlp_width(hidden, width)
        image = ViTConfig(patch, layers, width, openai_heads(width), mlp_width=mlp_width)
        resolution, embed_dim = grid * patch, shape("visual.proj", 2)[1]
    else:
        width = shape("visual.layer1.0.conv1.weight", 4)[0]
        grid = grid_side(shape("visual.attnpool.positional_embedding", 2)[0], file_name)
        layers = tuple(count(rf"visual\.layer{i}\.([0-9]+)\.") for i in range(1, 5))
        image = ResNetConfig(layers, width, openai_heads(layer4_channels(width)))
        resolution = grid * 2 * image.stride
        embed_dim = shape("visual.attnpool.c_proj.weight", 2)[0]
    text = infer_text(tensors, file_name)
    logit_bias = "logit_bias" in tensors
    config = CLIPConfig(image, text, Preprocessing(resolution), embed_dim, logit_bias)
    require_plausible(config, f"{file_name}: architecture", _REMEDY)
    return config


def infer_text(tensors: dict[str, np.ndarray], file_name: str) -> TextConfig:
    """Infer the architecture of CLIP's text tower from tensors by OpenAI's names.

    Raises:
        CheckpointMismatch: as ``infer_config``.
    """

    def shape(name: str) -> tuple[int, ...]:
        return require_shape(tensors, name, 2, f"{file_name} as a CLIP (by OpenAI's names)")

    if "token_embedding.weight" not in tensors:
        raise CheckpointMismatch(
            f"{file_name}: expected a text tower (token_embedding.weight, transformer.*), found an "
            "image tower alone, as detectors are saved; add --text-from with a whole checkpoint of "
            "the same model (for RegionCLIP OpenAI's archive, whose text tower it keeps frozen)"
        )
    vocab_size, text_width = shape("token_embedding.weight")
    hidden = shape("transformer.resblocks.0.mlp.c_fc.weight")[0]
    return TextConfig(
        vocab_size,
        context_length=shape("positional_embedding")[0],
        width=text_width,
        heads=openai_heads(text_width),
        layers=count_blocks(tensors, r"transformer\.resblocks\.([0-9]+)\.", file_name),
        mlp_width=_mlp_width(hidden, text_width),
    )


def require_tokenizer(
    text: TextTowerConfig, path: Path, name: str | None, source: TokenizerSource | None = None
) -> None:
    """Refuse a text tower whose token ids the package cannot make.

    Args:
        name: of the tower's tokenizer, if it is known.
        source: the tokenizer, if it reads a file.

    Raises:
        CheckpointMismatch: a vocabulary of another size than the tokenizer's, or too few positions.
    """
    num_ids = (source or TokenizerSource(text.tokenizer)).load().vocab_size
    num_rows = getattr(text, "vocab_size", num_ids)
    if num_rows != num_ids and source is not None and source.file is not None:
        raise CheckpointMismatch(
            f"{source.file}: expected the {num_rows} token ids of the embedding in {path}, found "
            f"a vocabulary of {num_ids}; give the file of the model's own page"
        )
    if num_rows != num_ids:
        raise CheckpointMismatch(
            f"{path}: expected an embedding of the {num_ids} token ids of CLIP's tokenizer, found "
            f"one of {num_rows}, of {'another tokenizer' if name is None else short(name)}; only "
            "models with CLIP's tokenizer can be converted"
        )
    if text.context_length < MIN_LENGTH:
        raise CheckpointMismatch(
            f"{path}: expected at least {MIN_LENGTH} positions of the text tower, found "
            f"{text.context_length}; give a whole CLIP"
        )


def infer_localizer_config(tensors: dict[str, np.ndarray], file_name: str) -> LocalizerConfig:
    """Infer a localizer's architecture from tensors by detectron2's names.

    Raises:
        CheckpointMismatch: a tensor that determines the architecture is missing or has a wrong
            rank.
    """
    lateral = f"{BACKBONE}fpn_lateral2"
    has_pyramid = f"{lateral}.weight" in tensors
    trunk = trunk_prefix(has_pyramid)
    is_clip = f"{trunk}layer1.0.conv1.weight" in tensors

    def width(name: str) -> int:
        return require_shape(
            tensors, name, 4, f"{file_name} as a localizer (by detectron2's names)"
        )[0]

    first, stages = ("layer1", range(1, 5)) if is_clip else ("res2", range(2, 6))
    pattern = rf"{re.escape(trunk)}{first[:-1]}%d\.([0-9]+)\."
    blocks = [count_blocks(tensors, pattern % stage, file_name) for stage in stages]
    config = LocalizerConfig(
        trunk="clip" if is_clip else "detectron",
        blocks=tuple(number for number in blocks if number),
        stem_width=width(f"{trunk}conv3.weight" if is_clip else f"{trunk}stem.conv1.weight"),
        bottleneck_width=width(f"{trunk}{first}.0.conv1.weight"),
        features=width(f"{trunk}{first}.0.conv3.weight"),
        pyramid_channels=width(f"{lateral}.weight") if has_pyramid else None,
        pyramid_norm=f"{lateral}.norm.weight" in tensors,
        head_convs=max(
            1, count_blocks(tensors, rf"{re.escape(HEAD)}conv\.conv([0-9]+)\.", file_name)
        ),
    )
    require_plausible(config, f"{file_name}: architecture", _REMEDY)
    return config


def require_shape(tensors, name: str, num_dims: int, where: str) -> tuple[int, ...]:
    """Return the shape of a tensor that determines the architecture.

    Raises:
        CheckpointMismatch: it is missing or has another rank; the message begins with ``where``.
    """
    if name not in tensors:
        raise CheckpointMismatch(
            f"{where}: expected the tensor {name!r}, found tensors such as {sorted(tensors)[:5]}; "
            "give a whole checkpoint of this kind"
        )
    found = tensors[name].shape
    if len(found) != num_dims:
        raise CheckpointMismatch(
            f"{where}: {name}: expected {num_dims} dimensions, found the shape {found}; give a "
            "checkpoint of this kind"
        )
    return found


def count_blocks(tensors, pattern: str, file_name: str) -> int:
    """Count the numbers from 0 that the pattern's group matches in names.

    Raises:
        CheckpointMismatch: a number is missing.
    """
    matches = (re.match(pattern, name) for name in tensors)
    found = {match[1] for match in matches if match}
    expected = [str(number) for number in range(len(found))]
    if others := sorted(found.difference(expected)):
        raise CheckpointMismatch(
            f"{file_name}: expected blocks numbered from 0 to {len(found) - 1}, found a tensor of "
            f"block {short(others[-1])}; {_REMEDY}"
        )
    return len(found)


def _mlp_width(hidden: int, width: int) -> int | None:
    """Return the field of a tower with an MLP of ``hidden`` channels."""
    return None if hidden == 4 * width else hidden


def grid_side(rows: int, file_name: str) -> int:
    """Return the side of the square grid that, with one extra token, has ``rows`` positions."""
    side = math.isqrt(max(rows - 1, 0))
    if side < 1 or side * side + 1 != rows:
        raise CheckpointMismatch(
            f"{file_name}: visual positional embedding: expected n*n + 1 rows, found {rows}; only "
            "towers with a square grid and one extra token are supported"
        )
    return side
