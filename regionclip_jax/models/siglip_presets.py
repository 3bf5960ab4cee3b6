"""Presets of SigLIP and SigLIP 2, by open_clip's names of models.

Source: ``model_configs/*SigLIP*.json`` of open_clip 3.3 and Hugging Face's ``config.json`` of the
same models (docs/reference/towers.md#siglip). A preset is what Hugging Face's files state, whose
activation is that of the training. open_clip's files of some names state another activation.
"""

from collections.abc import Iterator

from regionclip_jax.models.siglip_image import SigLIPImageConfig
from regionclip_jax.models.siglip_text import SigLIPTextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.structures import Preprocessing

_HALF = (0.5, 0.5, 0.5)
# Letter of a size -> layers, width, heads and hidden channels of the image tower, then of the text
# tower. None: four times the width.
_SO400M = (27, 1152, 16, 4304)
_TOWERS = {
    "B": ((12, 768, 12, None), (12, 768, 12, None)),
    "L": ((24, 1024, 16, None), (24, 1024, 16, None)),
    "SO400M": (_SO400M, _SO400M),
    "gopt": ((40, 1536, 16, None), _SO400M),
}
# (size, patch) -> resolutions; the first has no number in the name if it is 224.
_SIGLIP = {("B", 16): (224, 256, 384, 512), ("L", 16): (256, 384), ("SO400M", 14): (224, 378, 384)}
_SIGLIP2 = {
    ("B", 16): (224, 256, 384, 512),
    ("B", 32): (256,),
    ("L", 16): (256, 384, 512),
    ("SO400M", 14): (224, 378, 384),
    ("SO400M", 16): (256, 384, 512),
    ("gopt", 16): (256, 384),
}


def _preset(size: str, patch: int, resolution: int, *, second: bool) -> CLIPConfig:
    image, text = _TOWERS[size]
    layers, width, heads, mlp_width = text
    # One model was trained with shorter texts.
    short = not second and (size, resolution) == ("SO400M", 224)
    return CLIPConfig(
        SigLIPImageConfig(patch, *image[:3], mlp_width=image[3]),
        SigLIPTextConfig(
            vocab_size=256_000 if second else 32_000,
            context_length=16 if short else 64,
            width=width,
            heads=heads,
            layers=layers,
            tokenizer="siglip2" if second else "siglip",
            mlp_width=mlp_width,
        ),
        Preprocessing(resolution, _HALF, _HALF, "bilinear_round" if second else "bicubic_truncate"),
        embed_dim=image[1],
        logit_bias=True,
    )


def _presets() -> Iterator[tuple[str, CLIPConfig]]:
    for family, table in (("SigLIP", _SIGLIP), ("SigLIP2", _SIGLIP2)):
        for (size, patch), resolutions in table.items():
            for resolution in resolutions:
                suffix = "" if resolution == 224 else f"-{resolution}"
                second = family == "SigLIP2"
                config = _preset(size, patch, resolution, second=second)
                yield f"ViT-{size}-{patch}-{family}{suffix}", config


SIGLIP_PRESETS: dict[str, CLIPConfig] = dict(_presets())
