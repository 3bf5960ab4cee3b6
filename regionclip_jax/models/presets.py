"""Table of architectures for configs, conversion and tests.

Source: docs/reference/towers.md#variants for RN50, RN101 and RN50x4; OpenAI's published state dicts
for the rest. ``tiny`` is the network of the golden arrays, ``scenes`` that of the synthetic
experiment.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Architecture of a CLIP model, enough to build it; recorded in a checkpoint's card."""

    # Side of the square image of the positional embedding, in pixels.
    image_resolution: int
    # Blocks of layer1..layer4 (ResNet), or the number of transformer blocks (ViT).
    vision_layers: tuple[int, int, int, int] | int
    # ResNet: channels after the stem; ViT: width of the residual stream.
    vision_width: int
    # Side of a ViT patch in pixels; None means a ResNet.
    vision_patch_size: int | None
    # Attention heads of the attention pool (ResNet) or of each block (ViT).
    vision_heads: int
    # Width D shared by image and text embeddings.
    embed_dim: int
    vocab_size: int
    context_length: int
    text_width: int
    text_heads: int
    text_layers: int

    @property
    def is_vit(self) -> bool:
        return self.vision_patch_size is not None

    @property
    def grid_size(self) -> int:
        """Side of the grid of positional embeddings, in tokens."""
        return self.image_resolution // (self.vision_patch_size or 32)


def _resnet(resolution, layers, width, embed_dim, text_width, *, text_layers=12, vocab_size=49408):
    return CLIPConfig(
        image_resolution=resolution,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=None,
        vision_heads=width * 32 // 64,
        embed_dim=embed_dim,
        vocab_size=vocab_size,
        context_length=77,
        text_width=text_width,
        text_heads=text_width // 64,
        text_layers=text_layers,
    )


def _vit(resolution, layers, width, patch, embed_dim, text_width):
    return CLIPConfig(
        image_resolution=resolution,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch,
        vision_heads=width // 64,
        embed_dim=embed_dim,
        vocab_size=49408,
        context_length=77,
        text_width=text_width,
        text_heads=text_width // 64,
        text_layers=12,
    )


PRESETS: dict[str, CLIPConfig] = {
    "RN50": _resnet(224, (3, 4, 6, 3), 64, 1024, 512),
    "RN101": _resnet(224, (3, 4, 23, 3), 64, 512, 512),
    "RN50x4": _resnet(288, (4, 6, 10, 6), 80, 640, 640),
    "RN50x16": _resnet(384, (6, 8, 18, 8), 96, 768, 768),
    "RN50x64": _resnet(448, (3, 15, 36, 10), 128, 1024, 1024),
    "ViT-B/32": _vit(224, 12, 768, 32, 512, 512),
    "ViT-B/16": _vit(224, 12, 768, 16, 512, 512),
    "ViT-L/14": _vit(224, 24, 1024, 14, 768, 768),
    "ViT-L/14@336": _vit(336, 24, 1024, 14, 768, 768),
    "tiny": _resnet(224, (1, 1, 1, 1), 16, 64, 128, text_layers=2),
    # CLIP's 64 units per head would give one head, with which some seeds do not learn.
    "scenes": dataclasses.replace(
        _resnet(96, (1, 1, 1, 1), 16, 64, 64, text_layers=2), text_heads=4
    ),
    # For real images on two CPU cores.
    "small": dataclasses.replace(
        _resnet(128, (1, 1, 2, 1), 16, 128, 64, text_layers=2), text_heads=4
    ),
}


def preset_name(config: CLIPConfig) -> str | None:
    """Return the name of the preset that equals ``config``, or None."""
    return next((name for name, preset in PRESETS.items() if preset == config), None)
