"""Numbers of a CLIP that its tensors do not determine, from the files beside a checkpoint.

Hugging Face writes ``config.json`` and ``preprocessor_config.json``; open_clip writes
``open_clip_config.json``. They state activations, eps of the layer norms, heads, mean and standard
deviation. A number that they do not state is OpenAI's, as ``infer_config`` and the defaults of the
configs have it.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.transformer_blocks import Activation

_HUGGINGFACE, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_OPEN_CLIP = "open_clip_config.json"
# Suffixes of the checkpoints that come with such files.
CONFIGURED = (".safetensors", ".bin")
# Names in ``hidden_act`` of Hugging Face.
_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclasses.dataclass(frozen=True)
class StatedNumbers:
    """Numbers that replace those of a config's parts, by field."""

    image: dict[str, Any]
    text: dict[str, Any]
    preprocessing: dict[str, Any]


def read_stated_numbers(
    path: Path, config: CLIPConfig, *, huggingface: bool
) -> StatedNumbers | None:
    """Read the configuration files beside a checkpoint; None if there are none.

    Args:
        path: the checkpoint; others than ``CONFIGURED`` have no such files.
        config: architecture inferred from the tensors.
        huggingface: the tensors have Hugging Face's names, so its file has precedence.

    Raises:
        CheckpointMismatch: an activation that no tower has, or heads that do not divide the width.
    """
    if path.suffix not in CONFIGURED:
        return None
    readers = {_HUGGINGFACE: _read_huggingface, _OPEN_CLIP: _read_open_clip}
    for name in sorted(readers, key=lambda name: (name == _HUGGINGFACE) != huggingface):
        beside = path.parent / name
        if beside.is_file():
            stated = readers[name](beside, config)
            for part in ("image", "text"):
                _require_heads(getattr(stated, part), getattr(config, part), f"{beside}: {part}")
            return stated
    return None


def with_stated_numbers(part, numbers: dict[str, Any]):
    """Return a part of a config with the stated numbers among its fields."""
    fields = {field.name for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **{k: v for k, v in numbers.items() if k in fields})


def _read_huggingface(path: Path, config: CLIPConfig) -> StatedNumbers:
    content = _read_json(path)
    towers = {}
    for tower in ("vision_config", "text_config"):
        stated = content.get(tower) or {}
        # Hugging Face leaves out a value that equals its class's default.
        activation = stated.get("hidden_act", "quick_gelu")
        if activation not in _ACTIVATIONS:
            raise CheckpointMismatch(
                f"{path}: {tower}.hidden_act: expected one of {sorted(_ACTIVATIONS)}, found "
                f"{activation!r}, which no tower of this package has; give a CLIP with one of them"
            )
        towers[tower] = {
            "activation": _ACTIVATIONS[activation],
            "eps": stated.get("layer_norm_eps"),
            "heads": stated.get("num_attention_heads"),
        }
    preprocessor = path.with_name(_PREPROCESSOR)
    preprocessing = _read_json(preprocessor) if preprocessor.is_file() else {}
    return StatedNumbers(
        _given(towers["vision_config"]),
        _given(towers["text_config"]),
        _given({name: _triple(preprocessing.get(f"image_{name}")) for name in ("mean", "std")}),
    )


def _read_open_clip(path: Path, config: CLIPConfig) -> StatedNumbers:
    content = _read_json(path)
    model = content.get("model_cfg") or {}
    towers = {}
    for tower in ("vision_cfg", "text_cfg"):
        stated = model.get(tower) or {}
        activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
        if (stated.get("act_kwargs") or {}).get("approximate") == "tanh":
            activation = "gelu_tanh"
        eps = (stated.get("norm_kwargs") or {}).get("eps")
        towers[tower] = {"activation": activation, "eps": eps, "heads": stated.get("heads")}
    head_width = (model.get("vision_cfg") or {}).get("head_width")
    if head_width and hasattr(config.image, "heads"):
        channels = config.image.crop_channels or config.image.width
        towers["vision_cfg"]["heads"] = channels // head_width
    preprocessing = content.get("preprocess_cfg") or {}
    return StatedNumbers(
        _given(towers["vision_cfg"]),
        _given(towers["text_cfg"]),
        _given({name: _triple(preprocessing.get(name)) for name in ("mean", "std")}),
    )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointMismatch(f"{path}: expected JSON ({error}); copy the file again") from error
    if not isinstance(content, dict):
        raise CheckpointMismatch(
            f"{path}: expected a JSON object, found {type(content).__name__}; copy the file again"
        )
    return content


def _given(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if value is not None}


def _triple(values) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _require_heads(stated: dict[str, Any], tower, where: str) -> None:
    heads = stated.get("heads")
    if heads is None or not hasattr(tower, "heads"):
        return
    channels = getattr(tower, "crop_channels", None) or tower.width
    if heads < 1 or channels % heads:
        raise CheckpointMismatch(
            f"{where}: expected a number of heads that divides the {channels} channels of the "
            f"tensors, found {heads}; give the configuration file of this checkpoint"
        )
