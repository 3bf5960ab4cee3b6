"""Configuration files of Hugging Face's CLIP, read and written.

Source: ``CLIPVisionConfig``, ``CLIPTextConfig`` and ``CLIPImageProcessor`` of transformers 5.24.
Their values replace missing ones: transformers leaves out what equals its default.
"""

from pathlib import Path
from typing import Any

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.configuration import Configuration, Tower
from regionclip_jax.conversion.json_object import JsonObject
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.transformer_blocks import Activation
from regionclip_jax.structures import Preprocessing

FILE_NAME = "config.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_BLOCKS = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_IMAGE = _BLOCKS | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT = _BLOCKS | {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "eos_token_id": 49407,
}
# The end token; early files have 2, for which transformers reads the largest id, the same token.
_END_TOKENS = {49407: None, 2: None}
_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Pillow's numbers of its filters.
_RESIZE = {2: "bilinear_round", 3: "bicubic_truncate"}


def is_clip(content: JsonObject) -> bool:
    """Return whether a ``config.json``, a name that many programs use, is that of a CLIP."""
    return "vision_config" in content.values or "text_config" in content.values


def read(content: JsonObject) -> Configuration:
    """Read ``config.json`` and the preprocessor's file beside it.

    Raises:
        CheckpointMismatch: another model, a missing file or a number without use here.
    """
    if content.values.get("model_type") != "clip":
        content.refuse("model_type", "'clip'", "no other model of Hugging Face is supported")
    image, text = (
        _tower_part(content, name, defaults)
        for name, defaults in (("vision_config", _IMAGE), ("text_config", _TEXT))
    )
    text.choice("eos_token_id", _END_TOKENS)
    image_fields = tower_fields(image) | {
        "patch_size": image.count("patch_size"),
        "position_resize": "bicubic",
    }
    text_fields = tower_fields(text) | {
        "vocab_size": text.count("vocab_size"),
        "context_length": text.count("max_position_embeddings"),
    }
    content.values.setdefault("projection_dim", 512)
    tokenizer = content.path.with_name("tokenizer_config.json")
    return Configuration(
        content.path,
        Tower(image_fields, image.count("intermediate_size")),
        Tower(text_fields, text.count("intermediate_size")),
        content.count("projection_dim"),
        image.count("image_size"),
        read_preprocessing(content.path.parent, Preprocessing(image.count("image_size"))),
        JsonObject.read(tokenizer).values.get("tokenizer_class") if tokenizer.is_file() else None,
    )


def _tower_part(content: JsonObject, name: str, defaults: dict) -> JsonObject:
    part = content.part(name, defaults)
    # Early files repeat a part under this name, and transformers prefers it.
    part.values |= content.part(f"{name}_dict").values
    return part


def tower_fields(tower: JsonObject) -> dict:
    """Return the fields of a tower's blocks."""
    return {
        "activation": tower.choice("hidden_act", _ACTIVATIONS),
        "eps": tower.number("layer_norm_eps"),
        "heads": tower.count("num_attention_heads"),
        "width": tower.count("hidden_size"),
        "layers": tower.count("num_hidden_layers"),
    }


def read_preprocessing(folder: Path, default: Preprocessing) -> Preprocessing:
    """Read the preprocessor's file.

    Args:
        default: mean and standard deviation of a file that states none, and the resolution.

    Raises:
        CheckpointMismatch: no such file, or a step without use here.
    """
    path = next((folder / name for name in PREPROCESSORS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointMismatch(
            f"{folder}: expected {' or '.join(PREPROCESSORS)} beside {FILE_NAME}, which states "
            "mean and standard deviation, found neither; download it from the model's page"
        )
    content = JsonObject.read(path)
    if path.name == PREPROCESSORS[1]:
        content = content.part("image_processor", needed=True)
    defaults = {"resample": 3, "rescale_factor": 1 / 255, "do_rescale": True, "do_normalize": True}
    content.values = defaults | content.values
    for key in ("do_rescale", "do_normalize"):
        content.choice(key, {True: None, False: None})
    if not content.values["do_rescale"] or abs(content.number("rescale_factor") * 255 - 1) > 1e-3:
        content.refuse("rescale_factor", "1/255, with do_rescale", "no other is supported")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if content.values["do_normalize"]:
        mean = content.colour("image_mean", default.mean)
        std = content.colour("image_std", default.std)
    return Preprocessing(default.resolution, mean, std, content.choice("resample", _RESIZE))


def to_json(config: CLIPConfig, model_type: str) -> dict[str, Any]:
    """Return the content of ``config.json`` of a CLIP or a SigLIP whose towers are ViTs.

    Args:
        model_type: "clip" or "siglip".
    """
    image, text = tower_to_json(config.image), tower_to_json(config.text)
    image |= {
        "image_size": config.preprocessing.resolution,
        "patch_size": config.image.patch_size,
        "model_type": f"{model_type}_vision_model",
    }
    text |= {
        "vocab_size": config.text.vocab_size,
        "max_position_embeddings": config.text.context_length,
        "model_type": f"{model_type}_text_model",
    }
    return {"model_type": model_type, "vision_config": image, "text_config": text}


def clip_to_json(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of ``config.json`` of a CLIP: what ``read`` reads."""
    content = to_json(config, "clip")
    # The last two ids of the vocabulary are CLIP's start and end token.
    end = config.text.vocab_size - 1
    content["text_config"] |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    for part in (content, content["vision_config"], content["text_config"]):
        part["projection_dim"] = config.embed_dim
    return content | {"architectures": ["CLIPModel"]}


def tower_to_json(tower: Any) -> dict[str, Any]:
    """Return what ``tower_fields`` reads, and the hidden channels of the MLPs."""
    activations = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
    return {
        "hidden_act": activations[tower.activation],
        "layer_norm_eps": tower.eps,
        "num_attention_heads": tower.heads,
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "intermediate_size": tower.mlp_width or 4 * tower.width,
    }


def preprocessing_to_json(preprocessing: Preprocessing, model_type: str) -> dict[str, Any]:
    """Return the content of the preprocessor's file; arguments as of ``to_json``."""
    numbers = {method: number for number, method in _RESIZE.items()}
    side = {"height": preprocessing.resolution, "width": preprocessing.resolution}
    content = {
        "do_resize": True,
        # The other methods are bicubic too, and differ in the size of the result.
        "resample": numbers.get(preprocessing.resize, 3),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": True,
    }
    if model_type == "siglip":
        return content | {"image_processor_type": "SiglipImageProcessor", "size": side}
    shortest = {"shortest_edge": preprocessing.resolution}
    return content | {
        "image_processor_type": "CLIPImageProcessor",
        "size": shortest,
        "do_center_crop": True,
        "crop_size": side,
    }
