"""``open_clip_config.json``, read and written.

Source: ``CLIPVisionCfg``, ``CLIPTextCfg`` and ``PreprocessCfg`` of open_clip 3.3. Their values
replace missing ones. A key that no tower here follows is refused, unless its value has no effect.
"""

import dataclasses
from typing import Any, NoReturn

from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.conversion.configuration import Configuration, Tower
from regionclip_jax.conversion.json_object import JsonObject
from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.modified_resnet import ResNetConfig, layer4_channels
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.structures import Preprocessing

FILE_NAME = "open_clip_config.json"
_MODEL = {
    "embed_dim", "quick_gelu", "custom_text", "vision_cfg", "text_cfg", "init_logit_scale",
    "init_logit_bias", "cast_dtype", "output_dict",
}  # fmt: skip
_BLOCKS = {"layers": 12, "mlp_ratio": 4.0, "norm_kwargs": None, "act_kwargs": None}
_IMAGE = _BLOCKS | {"width": 768, "head_width": 64, "patch_size": 16, "image_size": 224}
_TEXT = _BLOCKS | {"width": 512, "heads": 8, "context_length": 77, "vocab_size": 49408}
# The one supported value of further keys.
_FIXED = {
    "image": {"pos_embed_type": "learnable", "pool_type": "tok"},
    "text": {"pool_type": "argmax", "proj_type": "linear"},
}
# Keys that matter in training, or for another value of a fixed one; the size of the vocabulary
# tells whether the tokenizer is CLIP's.
_WITHOUT_EFFECT = {
    "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens", "pad_id",
    "eos_id", "hf_tokenizer_name", "tokenizer_kwargs", "hf_model_pretrained",
}  # fmt: skip
# Trunks of timm, and the preset that has one's numbers.
_TIMM_TRUNKS = {
    "eva02_base_patch16_clip_224": "EVA02-B-16",
    "eva02_large_patch14_clip_224": "EVA02-L-14",
    "eva02_large_patch14_clip_336": "EVA02-L-14-336",
}
_TIMM_IMAGE = {"image_size": 224, "timm_pool": "avg", "timm_proj": "linear"}
_TIMM_FIXED = {"timm_pool": "token"}
# Initialisation, training, and the projection that none of these trunks has.
_TIMM_WITHOUT_EFFECT = {
    "timm_model_pretrained", "timm_drop", "timm_drop_path", "timm_proj_bias", "patch_dropout",
}  # fmt: skip
# open_clip draws a filter at "random" in training only.
_RESIZE = {
    "bicubic": "bicubic_truncate",
    "random": "bicubic_truncate",
    "bilinear": "bilinear_round",
}
# Epsilon of the layer norms that open_clip's files leave out.
_EPS = 1e-5


def read(content: JsonObject) -> Configuration:
    """Read ``open_clip_config.json``.

    Raises:
        CheckpointMismatch: a key that changes the model in a way that no tower here follows.
    """
    model = content.part("model_cfg", needed=True)
    for key, value in model.values.items():
        if key not in _MODEL and value:
            model.refuse(key, "no such key", "no model here has it")
    text = model.part("text_cfg", _TEXT, needed=True)
    _require_supported(text, _TEXT, _FIXED["text"])
    quick_gelu = model.choice("quick_gelu", {True: True, False: False, None: False})
    image, resolution = _image(model, quick_gelu)
    text_fields = _fields(text, quick_gelu) | {
        name: text.count(name) for name in ("heads", "context_length", "vocab_size")
    }
    return Configuration(
        content.path,
        image,
        Tower(text_fields, _mlp_width(text)),
        model.count("embed_dim"),
        resolution,
        read_preprocessing(content, resolution),
        text.values.get("hf_tokenizer_name"),
    )


def _image(model: JsonObject, quick_gelu: bool) -> tuple[Tower, int]:
    """Return the image tower, and the side of its images in pixels."""
    if model.part("vision_cfg", needed=True).values.get("timm_model_name") is not None:
        return _timm_image(model)
    image = model.part("vision_cfg", _IMAGE, needed=True)
    _require_supported(image, _IMAGE, _FIXED["image"])
    fields = _fields(image, quick_gelu) | {"position_resize": "bicubic_antialiased"}
    channels = image.count("width")
    if isinstance(image.values["layers"], list):
        channels = layer4_channels(channels)
    else:
        fields["patch_size"] = image.count("patch_size")
    fields["heads"] = channels // image.count("head_width")
    return Tower(fields, _mlp_width(image)), image.count("image_size")


def _timm_image(model: JsonObject) -> tuple[Tower, int]:
    """Return the same of a trunk of timm, whose name states its numbers."""
    image = model.part("vision_cfg", _TIMM_IMAGE, needed=True)
    preset = PRESETS[image.choice("timm_model_name", _TIMM_TRUNKS)].image
    for key, value in image.values.items():
        known = key in ("timm_model_name", "image_size") or key in _TIMM_WITHOUT_EFFECT
        # No projection beside the trunk's own is null, or an empty name.
        if not known and value and value != _TIMM_FIXED.get(key):
            image.refuse(key, repr(_TIMM_FIXED.get(key)), "no tower here has it")
    return Tower(dataclasses.asdict(preset), preset.mlp_width), image.count("image_size")


def _require_supported(tower: JsonObject, read: dict, fixed: dict) -> None:
    for key, value in tower.values.items():
        if key in fixed:
            if value != fixed[key]:
                tower.refuse(key, repr(fixed[key]), "no tower here has another")
        elif not (key in read or key in _WITHOUT_EFFECT or value in (None, False)):
            tower.refuse(key, "no such key", "no tower here has it")


def _fields(tower: JsonObject, quick_gelu: bool) -> dict:
    activation = tower.part("act_kwargs", {"approximate": "none"})
    plain = activation.choice("approximate", {"none": "gelu", "tanh": "gelu_tanh"})
    layers = tower.values["layers"]
    return {
        "activation": "quick_gelu" if quick_gelu else plain,
        "eps": tower.part("norm_kwargs", {"eps": _EPS}).number("eps"),
        "width": tower.count("width"),
        "layers": tuple(layers) if isinstance(layers, list) else tower.count("layers"),
    }


def _mlp_width(tower: JsonObject) -> int:
    return int(tower.count("width") * tower.number("mlp_ratio"))


def read_preprocessing(content: JsonObject, resolution: int) -> Preprocessing:
    """Read ``preprocess_cfg``; a missing key has open_clip's default, which is CLIP's."""
    clip = Preprocessing(resolution)
    stated = content.part("preprocess_cfg", {"interpolation": "bicubic"})
    return Preprocessing(
        resolution,
        stated.colour("mean", clip.mean),
        stated.colour("std", clip.std),
        stated.choice("interpolation", _RESIZE),
    )


def to_json(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of the file of a CLIP: what ``read`` reads.

    Raises:
        CheckpointMismatch: open_clip has no such model.
    """
    text = config.text
    if not isinstance(text, TextConfig):
        refuse(f"a text tower {type(text).__name__} beside this image tower")
    activations = {text.activation}
    match config.image:
        case ResNetConfig() as image:
            head_width, rest = divmod(layer4_channels(image.width), image.heads)
            if rest:
                refuse(f"{image.heads} heads of {layer4_channels(image.width)} channels")
            vision = {"layers": list(image.layers), "width": image.width, "head_width": head_width}
            vision["patch_size"] = None
        case ViTConfig() as image:
            activations.add(image.activation)
            vision = tower_to_json(image) | {"patch_size": image.patch_size}
            vision["head_width"] = image.width // vision.pop("heads")
        case EVAConfig():
            vision = {"timm_model_name": _timm_trunk(config), "timm_model_pretrained": False}
            vision |= _TIMM_FIXED | {"timm_proj": None}
        case image:
            refuse(f"an image tower {type(image).__name__} beside CLIP's text tower")
    if "quick_gelu" in activations and len(activations) > 1:
        refuse("QuickGELU in one of two towers")
    model = {
        "embed_dim": config.embed_dim,
        "quick_gelu": "quick_gelu" in activations,
        "vision_cfg": {"image_size": config.preprocessing.resolution, **vision},
        "text_cfg": tower_to_json(text)
        | {"context_length": text.context_length, "vocab_size": text.vocab_size},
    }
    if isinstance(config.image, EVAConfig):
        model["custom_text"] = True
    return model_to_json(config, model)


def model_to_json(config: CLIPConfig, model: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a file, from that of its key ``model_cfg``."""
    if config.logit_bias:
        model |= {"init_logit_bias": -10}
    names = {method: name for name, method in reversed(_RESIZE.items())}
    preprocessing = {
        "mean": list(config.preprocessing.mean),
        "std": list(config.preprocessing.std),
        # The other methods are bicubic too, and differ in the size of the result.
        "interpolation": names.get(config.preprocessing.resize, "bicubic"),
    }
    return {"model_cfg": model, "preprocess_cfg": preprocessing}


def tower_to_json(tower: Any) -> dict[str, Any]:
    """Return the numbers of the blocks of a ViT or a text tower."""
    hidden = tower.mlp_width or 4 * tower.width
    values = {"layers": tower.layers, "width": tower.width, "heads": tower.heads}
    ratio = hidden / tower.width
    # open_clip rounds the product down.
    values["mlp_ratio"] = (
        ratio if int(ratio * tower.width) == hidden else (hidden + 0.5) / tower.width
    )
    if tower.eps != _EPS:
        values["norm_kwargs"] = {"eps": tower.eps}
    if tower.activation == "gelu_tanh":
        values["act_kwargs"] = {"approximate": "tanh"}
    return values


def _timm_trunk(config: CLIPConfig) -> str:
    """Return the name of the trunk of timm with the numbers of an EVA-02."""
    for name, preset_name in _TIMM_TRUNKS.items():
        preset = PRESETS[preset_name]
        rule = config.image.position_resize
        same = dataclasses.replace(preset.image, position_resize=rule) == config.image
        if same and preset.preprocessing.resolution == config.preprocessing.resolution:
            return name
    refuse(f"another EVA-02 than {', '.join(_TIMM_TRUNKS)}, as a trunk of timm states its sizes")


def refuse(what: str) -> NoReturn:
    """Refuse a model that open_clip does not have."""
    raise CheckpointMismatch(
        f"format openclip: expected a model that open_clip has, found {what}; choose another "
        "--format (docs/export.md has a table)"
    )
