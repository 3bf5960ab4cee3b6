"""Presets of the ViTs that open_clip publishes, by its names of models.

Source: ``model_configs/*.json`` and ``pretrained.py`` of open_clip 3.3. A preset is what
``open_clip_config.json`` of that model states. Names without a suffix have GELU.
"""

import dataclasses
from collections.abc import Iterator

from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.transformer_blocks import Activation
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.structures import Preprocessing


def _with_activation(config: CLIPConfig, activation: Activation) -> CLIPConfig:
    image, text = (
        dataclasses.replace(tower, activation=activation) for tower in (config.image, config.text)
    )
    return dataclasses.replace(config, image=image, text=text)


def _clip(image: ViTConfig, resolution: int, embed_dim: int, text: TextConfig) -> CLIPConfig:
    preprocessing = Preprocessing(resolution, resize="bicubic_truncate")
    return CLIPConfig(image, text, preprocessing, embed_dim)


def _text(width: int, heads: int, layers: int) -> TextConfig:
    return TextConfig(49408, 77, width, heads, layers)


_BASE_TEXT = _text(512, 8, 12)
_HUGE_TEXT = _text(1024, 16, 24)
_B32 = ViTConfig(patch_size=32, layers=12, width=768, heads=12)
_L14 = ViTConfig(patch_size=14, layers=24, width=1024, heads=16)
_H14 = ViTConfig(patch_size=14, layers=32, width=1280, heads=16)
_SIZES = {
    "ViT-B-32": _clip(_B32, 224, 512, _BASE_TEXT),
    "ViT-B-32-256": _clip(_B32, 256, 512, _BASE_TEXT),
    "ViT-B-16": _clip(ViTConfig(16, 12, 768, 12), 224, 512, _BASE_TEXT),
    "ViT-B-16-plus-240": _clip(ViTConfig(16, 12, 896, 14), 240, 640, _text(640, 10, 12)),
    "ViT-L-14": _clip(_L14, 224, 768, _text(768, 12, 12)),
    "ViT-H-14": _clip(_H14, 224, 1024, _HUGE_TEXT),
    "ViT-H-14-378": _clip(_H14, 378, 1024, _HUGE_TEXT),
    "ViT-g-14": _clip(ViTConfig(14, 40, 1408, 16, mlp_width=6144), 224, 1024, _HUGE_TEXT),
    "ViT-bigG-14": _clip(
        ViTConfig(14, 48, 1664, 16, mlp_width=8192), 224, 1280, _text(1280, 20, 32)
    ),
}
# Published with QuickGELU, and those published with it alone.
_QUICK_GELU = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-H-14-378", "ViT-bigG-14")
_NO_GELU = ("ViT-H-14-378",)


def _presets() -> Iterator[tuple[str, CLIPConfig]]:
    for name, sizes in _SIZES.items():
        if name not in _NO_GELU:
            yield name, _with_activation(sizes, "gelu")
        if name in _QUICK_GELU:
            yield f"{name}-quickgelu", _with_activation(sizes, "quick_gelu")


OPEN_CLIP_VITS: dict[str, CLIPConfig] = dict(_presets())
# The one published model of LAION with other pixels.
_HALF = (0.5, 0.5, 0.5)
OPEN_CLIP_VITS["ViT-L-14-laion2b_s32b_b82k"] = dataclasses.replace(
    OPEN_CLIP_VITS["ViT-L-14"],
    preprocessing=Preprocessing(224, _HALF, _HALF, "bicubic_truncate"),
)
