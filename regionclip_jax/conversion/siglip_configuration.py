"""Configuration files beside a SigLIP's checkpoint.

Source: ``SiglipVisionConfig``, ``SiglipTextConfig`` and ``SiglipImageProcessor`` of transformers
5.24; ``model_configs/*SigLIP*.json`` of open_clip 3.3 and the trunks that they name, of timm
1.0.31. Each file is followed as its own library follows it. So the activation of a trunk of timm is
the exact GELU for the names in ``_EXACT_GELU``, though SigLIP was trained with the approximation by
a tanh, which Hugging Face has throughout (docs/reference/towers.md#siglip).
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.conversion import (
    huggingface_configuration,
    huggingface_keys,
    open_clip_configuration,
)
from regionclip_jax.conversion.choices import Choice
from regionclip_jax.conversion.configuration import Configuration, Tower
from regionclip_jax.conversion.configuration_files import Completed
from regionclip_jax.conversion.json_object import JsonObject
from regionclip_jax.models.siglip_image import SigLIPImageConfig
from regionclip_jax.models.siglip_presets import SIGLIP_PRESETS
from regionclip_jax.models.siglip_text import SigLIPTextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.structures import Preprocessing

_HALF = (0.5, 0.5, 0.5)
_BLOCKS = {
    "num_hidden_layers": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}
_IMAGE = _BLOCKS | {"image_size": 224, "patch_size": 16, "vision_use_head": True}
_TEXT = _BLOCKS | {"vocab_size": 32000, "max_position_embeddings": 64}
_TRUNK = re.compile(r"vit_([a-z0-9]+)_patch([0-9]+)_siglip_([0-9]+)")
# Size in a trunk's name -> its heads.
_TRUNK_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
# The same sizes in the names of presets.
_PRESET_SIZES = {"B": "base", "L": "large", "SO400M": "so400m", "gopt": "giantopt"}
# Trunks whose activation timm leaves at its default.
_EXACT_GELU = re.compile(
    r"vit_(base_patch16_siglip_(224|256|384|512)|large_patch16_siglip_(256|384)"
    r"|so400m_patch14_siglip_(224|378|384))"
)
_TRUNK_EPS = 1e-6
# The only supported values of open_clip's keys; others are read, or must be empty.
_OPEN_CLIP_IMAGE = {"timm_pool": "map", "timm_proj": "none"}
_OPEN_CLIP_TEXT = {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "proj_type": "linear",
}
# Those of a key that a file lacks.
_OPEN_CLIP_DEFAULTS = {
    "layers": 12, "width": 512, "heads": 8, "mlp_ratio": 4.0, "context_length": 77,
    "vocab_size": 49408, "proj_type": "linear",
}  # fmt: skip
_READ = {
    "image": {"timm_model_name", "image_size"},
    "text": {
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs",
        "act_kwargs",
        # They choose the tokenizer, whose file is asked for.
        "hf_tokenizer_name", "tokenizer_kwargs",
    },
}  # fmt: skip


def complete(
    config: CLIPConfig, path: Path, tensors: dict[str, np.ndarray], choice: Choice
) -> Completed:
    """Complete an inferred config with the numbers beside a checkpoint, or of a choice.

    Args:
        config: of ``siglip_keys.infer_config``.
        path: the checkpoint.
        tensors: by the file's own names.
        choice: of the user, for a checkpoint without configuration.

    Returns:
        The config, whose tokenizer is not chosen yet, and notes for the report.

    Raises:
        CheckpointMismatch: no configuration file and no choice, a damaged file, or one or a preset
            of another checkpoint.
    """
    huggingface = huggingface_keys.is_huggingface(tensors)
    library = huggingface_configuration if huggingface else open_clip_configuration
    beside = path.with_name(library.FILE_NAME)
    what = f"{path.name}: heads, activation, eps and pixels are those of"
    if not beside.is_file():
        if choice.flag is None:
            raise CheckpointMismatch(
                f"{path}: expected {library.FILE_NAME} beside it (heads, activation, eps and "
                "pixels of a SigLIP are not in the tensors), found no such file; download it from "
                "the model's page into this directory, or name its --preset"
            )
        chosen = choice.completed(config, path, image=True, text=True)
        return Completed(chosen, notes=(f"{what} {choice.flag}",), chosen=True)
    content = JsonObject.read(beside)
    found = _read_huggingface(content) if huggingface else _read_open_clip(content)
    config = found.completed(config, image=True, text=True)
    # SO400M's 384 pixels are 27 patches of 14 and a rest without effect.
    preprocessing = dataclasses.replace(config.preprocessing, resolution=found.resolution)
    config = dataclasses.replace(config, preprocessing=preprocessing)
    return Completed(config, notes=(f"{what} {beside.name}",))


def _read_huggingface(content: JsonObject) -> Configuration:
    if content.values.get("model_type") != "siglip":
        content.refuse(
            "model_type",
            "'siglip' (SigLIP, and SigLIP 2 of a fixed resolution)",
            "NaFlex models ('siglip2') and others with a MAP head are not supported",
        )
    image = content.part("vision_config", _IMAGE)
    text = content.part("text_config", _TEXT)
    image.choice("vision_use_head", {True: None})
    if text.values.get("projection_size") is None:
        text.values["projection_size"] = text.values["hidden_size"]
    image_fields = huggingface_configuration.tower_fields(image) | {
        "patch_size": image.count("patch_size"),
        "position_resize": "bicubic",
    }
    text_fields = huggingface_configuration.tower_fields(text) | {
        "vocab_size": text.count("vocab_size"),
        "context_length": text.count("max_position_embeddings"),
    }
    resolution = image.count("image_size")
    return Configuration(
        content.path,
        Tower(image_fields, image.count("intermediate_size")),
        Tower(text_fields, text.count("intermediate_size")),
        text.count("projection_size"),
        resolution,
        huggingface_configuration.read_preprocessing(
            content.path.parent, Preprocessing(resolution, _HALF, _HALF)
        ),
        None,
    )


def _read_open_clip(content: JsonObject) -> Configuration:
    model = content.part("model_cfg", needed=True)
    image = model.part("vision_cfg", {"image_size": 224}, needed=True)
    text = model.part("text_cfg", _OPEN_CLIP_DEFAULTS, needed=True)
    for part, fixed, read in (
        (image, _OPEN_CLIP_IMAGE, _READ["image"]),
        (text, _OPEN_CLIP_TEXT, _READ["text"]),
    ):
        _require_supported(part, fixed, read)
    trunk = image.values.get("timm_model_name")
    match = _TRUNK.fullmatch(trunk) if isinstance(trunk, str) else None
    if match is None or match[1] not in _TRUNK_HEADS:
        image.refuse(
            "timm_model_name",
            "a name such as vit_base_patch16_siglip_224",
            "no other trunk with a MAP head is supported",
        )
    resolution = image.count("image_size")
    width = text.count("width")
    image_fields = {
        "activation": "gelu" if _EXACT_GELU.fullmatch(trunk) else "gelu_tanh",
        "eps": _TRUNK_EPS,
        "heads": _TRUNK_HEADS[match[1]],
        "patch_size": int(match[2]),
        "position_resize": "bicubic_antialiased",
    }
    activation = text.part("act_kwargs", {"approximate": "none"})
    text_fields = {
        "activation": activation.choice("approximate", {"none": "gelu", "tanh": "gelu_tanh"}),
        "eps": text.part("norm_kwargs", {"eps": 1e-5}).number("eps"),
        "width": width,
    } | {name: text.count(name) for name in ("layers", "heads", "context_length", "vocab_size")}
    return Configuration(
        content.path,
        Tower(image_fields, None),
        Tower(text_fields, int(width * text.number("mlp_ratio"))),
        model.count("embed_dim"),
        resolution,
        open_clip_configuration.read_preprocessing(content, resolution),
        None,
    )


def _require_supported(tower: JsonObject, fixed: dict, read: set[str]) -> None:
    for key, value in fixed.items():
        if tower.values.get(key) != value:
            tower.refuse(key, repr(value), "SigLIP's towers have no other")
    for key, value in tower.values.items():
        if key not in fixed and key not in read and value not in (None, False):
            tower.refuse(key, "no such key", "no tower here has it")


def is_siglip(config: CLIPConfig) -> bool:
    """Return whether both towers are SigLIP's."""
    images, texts = isinstance(config.image, SigLIPImageConfig), config.text
    return images and isinstance(texts, SigLIPTextConfig)


def to_huggingface_json(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of Hugging Face's ``config.json`` of a SigLIP."""
    content = huggingface_configuration.to_json(config, "siglip")
    content["text_config"]["projection_size"] = config.embed_dim
    content["vision_config"]["vision_use_head"] = True
    return content | {"architectures": ["SiglipModel"]}


def to_open_clip_json(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of ``open_clip_config.json`` of a SigLIP.

    Raises:
        CheckpointMismatch: timm has no trunk with this tower's numbers.
    """
    text: Any = config.text
    text_cfg = open_clip_configuration.tower_to_json(text) | {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        # For a directory, open_clip reads the tokenizer's files beside this one.
        "hf_tokenizer_name": text.tokenizer,
        "tokenizer_kwargs": {"clean": "canonicalize"},
        **_OPEN_CLIP_TEXT,
    }
    del text_cfg["proj_type"]
    vision_cfg = {
        "image_size": config.preprocessing.resolution,
        "timm_model_name": _trunk_name(config),
        "timm_model_pretrained": False,
        **_OPEN_CLIP_IMAGE,
    }
    model = {"embed_dim": config.embed_dim, "custom_text": True}
    model |= {"vision_cfg": vision_cfg, "text_cfg": text_cfg}
    return open_clip_configuration.model_to_json(config, model)


def _trunk_name(config: CLIPConfig) -> str:
    """Return the name of the trunk of timm with the numbers of an image tower."""
    image: Any = config.image
    own = {"activation": image.activation, "position_resize": image.position_resize}
    resolution = config.preprocessing.resolution
    for name, preset in SIGLIP_PRESETS.items():
        sizes: Any = preset.image
        if (
            dataclasses.replace(sizes, **own) == image
            and preset.preprocessing.resolution == resolution
        ):
            size = _PRESET_SIZES[name.split("-")[1]]
            trunk = f"vit_{size}_patch{image.patch_size}_siglip_{resolution}"
            break
    else:
        open_clip_configuration.refuse(
            f"a SigLIP of {image.layers} blocks of {image.width} channels for {resolution} pixels, "
            "which no trunk of timm is"
        )
    activation = "gelu" if _EXACT_GELU.fullmatch(trunk) else "gelu_tanh"
    if image.activation != activation:
        open_clip_configuration.refuse(
            f"the activation {image.activation} where timm's {trunk} has {activation}, so that "
            "embeddings would differ"
        )
    return trunk
