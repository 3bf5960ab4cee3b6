"""Tables of architectures for configs, conversion and tests.

Source: docs/reference/towers.md#variants for RN50, RN101 and RN50x4; OpenAI's published state dicts
for other names with a slash, ``open_clip_presets`` for ViTs with dashes,
docs/reference/towers.md#eva-02 for EVA-02. ``tiny`` is the network of the golden arrays, ``scenes``
and ``scenes_vit`` are those of the synthetic experiments.
"""

import dataclasses

from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.localizer import LocalizerConfig
from regionclip_jax.models.modified_resnet import ResNetConfig, layer4_channels
from regionclip_jax.models.open_clip_presets import OPEN_CLIP_VITS
from regionclip_jax.models.siglip_presets import SIGLIP_PRESETS
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.structures import Preprocessing


def openai_heads(width: int) -> int:
    """Return the number of heads of OpenAI's towers: 64 channels each. Their files do not say."""
    return max(1, width // 64)


def _clip(image, resolution: int, embed_dim: int, text: TextConfig) -> CLIPConfig:
    return CLIPConfig(image, text, Preprocessing(resolution), embed_dim)


def _text(width: int, *, layers: int = 12, heads: int | None = None) -> TextConfig:
    return TextConfig(
        vocab_size=49408,
        context_length=77,
        width=width,
        heads=heads or openai_heads(width),
        layers=layers,
    )


def _resnet(layers: tuple[int, int, int, int], width: int) -> ResNetConfig:
    return ResNetConfig(layers, width, openai_heads(layer4_channels(width)))


def _vit(patch_size: int, layers: int, width: int) -> ViTConfig:
    return ViTConfig(patch_size, layers, width, openai_heads(width))


def _eva(patch_size: int, layers: int, width: int, resolution: int, text_width: int) -> CLIPConfig:
    # The hidden channels are a whole number below 8/3 of the width.
    image = EVAConfig(patch_size, layers, width, openai_heads(width), mlp_width=8 * width // 3)
    text = dataclasses.replace(_text(text_width), activation="gelu")
    preprocessing = Preprocessing(resolution, resize="bicubic_truncate")
    return CLIPConfig(image, text, preprocessing, embed_dim=text_width)


# OpenAI's heads of 64 channels would be a single head in text towers this narrow, with which some
# seeds do not learn.
_NARROW_TEXT = _text(64, layers=2, heads=4)

PRESETS: dict[str, CLIPConfig] = {
    "RN50": _clip(_resnet((3, 4, 6, 3), 64), 224, 1024, _text(512)),
    "RN101": _clip(_resnet((3, 4, 23, 3), 64), 224, 512, _text(512)),
    "RN50x4": _clip(_resnet((4, 6, 10, 6), 80), 288, 640, _text(640)),
    "RN50x16": _clip(_resnet((6, 8, 18, 8), 96), 384, 768, _text(768)),
    "RN50x64": _clip(_resnet((3, 15, 36, 10), 128), 448, 1024, _text(1024)),
    "ViT-B/32": _clip(_vit(32, 12, 768), 224, 512, _text(512)),
    "ViT-B/16": _clip(_vit(16, 12, 768), 224, 512, _text(512)),
    "ViT-L/14": _clip(_vit(14, 24, 1024), 224, 768, _text(768)),
    "ViT-L/14@336": _clip(_vit(14, 24, 1024), 336, 768, _text(768)),
    **OPEN_CLIP_VITS,
    "EVA02-B-16": _eva(16, 12, 768, 224, text_width=512),
    "EVA02-L-14": _eva(14, 24, 1024, 224, text_width=768),
    "EVA02-L-14-336": _eva(14, 24, 1024, 336, text_width=768),
    **SIGLIP_PRESETS,
    "tiny": _clip(_resnet((1, 1, 1, 1), 16), 224, 64, _text(128, layers=2)),
    "scenes": _clip(_resnet((1, 1, 1, 1), 16), 96, 64, _NARROW_TEXT),
    # The same with a ViT; its heads have 32 channels, not 64.
    "scenes_vit": _clip(ViTConfig(8, 3, 128, heads=4), 64, 64, _NARROW_TEXT),
    # For real images on two CPU cores.
    "small": _clip(_resnet((1, 1, 2, 1), 16), 128, 128, _NARROW_TEXT),
}


# Source: docs/reference/configuration.md#localizers.
_RN50_TRUNK = dict(blocks=(3, 4, 6, 3), stem_width=64, bottleneck_width=64, features=256)

LOCALIZER_PRESETS: dict[str, LocalizerConfig] = {
    # The reference's rpn_coco_48: one level.
    "rn50_c4": LocalizerConfig(),
    # Its rpn_lvis_866, and the variant for large-scale jitter with norms and a deeper head.
    "rn50_fpn": LocalizerConfig(**_RN50_TRUNK, pyramid_channels=256),
    "rn50_fpn_lsj": LocalizerConfig(
        **_RN50_TRUNK, pyramid_channels=256, pyramid_norm=True, head_convs=2
    ),
    # Its rpn_lvis_1203_clipbackbone: a pyramid on CLIP's RN50.
    "clip_rn50_fpn": LocalizerConfig(
        trunk="clip", blocks=(3, 4, 6, 3), stem_width=64, pyramid_channels=256
    ),
    # On the small CLIP of the synthetic experiment.
    "scenes": LocalizerConfig(
        trunk="clip", blocks=(1, 1, 1, 1), stem_width=16, pyramid_channels=64
    ),
    # A few million operations per image: for two CPU cores.
    "small": LocalizerConfig(
        blocks=(1, 1, 2, 1),
        stem_width=16,
        bottleneck_width=16,
        features=64,
        pyramid_channels=64,
        pyramid_norm=True,
    ),
}


def preset_name(config: CLIPConfig) -> str | None:
    """Return the name of the preset that equals ``config`` but for ``normalize_map``, or None."""
    config = dataclasses.replace(config, normalize_map=False)
    return next((name for name, preset in PRESETS.items() if preset == config), None)
