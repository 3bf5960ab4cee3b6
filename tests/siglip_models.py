"""Random SigLIPs of transformers and of timm with open_clip, their files and their outputs.

Only ``golden/make_siglip.py`` and slow tests import this: it needs torch and the libraries.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import timm
import torch
import transformers
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional


class Sizes(NamedTuple):
    """Sizes of a model; ``trunk`` is the name of timm's trunk, which fixes heads and patch."""

    trunk: str
    patch: int
    image: int
    width: int
    heads: int
    mlp: int
    layers: int
    vocabulary: int
    context: int
    text_width: int
    text_heads: int
    text_mlp: int
    text_layers: int


class Outputs(NamedTuple):
    """Outputs of a library for pixels (NCHW) and tokens; the dense map is [B, h, w, D]."""

    whole: np.ndarray
    dense: np.ndarray
    texts: np.ndarray
    logits: np.ndarray
    other_whole: np.ndarray
    other_dense: np.ndarray


def randomise(module: nn.Module) -> None:
    """Draw every parameter: zeros and ones of a fresh model would hide missing ones."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "logit_scale":
            value = 2.3 + 0.1 * noise
        elif name == "logit_bias":
            value = -3.1 + 0.1 * noise
        elif parameter.ndim < 2:
            value = ("norm" in name and name.endswith("weight")) + 0.3 * noise
        else:
            value = noise * (1.5 / parameter[0].numel() ** 0.5)
        parameter.data = value.float()


def huggingface(sizes: Sizes) -> transformers.SiglipModel:
    text = dict(
        vocab_size=sizes.vocabulary, hidden_size=sizes.text_width, intermediate_size=sizes.text_mlp,
        num_hidden_layers=sizes.text_layers, num_attention_heads=sizes.text_heads,
        max_position_embeddings=sizes.context, projection_size=sizes.width,
    )  # fmt: skip
    vision = dict(
        hidden_size=sizes.width, intermediate_size=sizes.mlp, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, image_size=sizes.image, patch_size=sizes.patch,
    )  # fmt: skip
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    model = transformers.SiglipModel(config).eval()
    randomise(model)
    return model


class OpenClip(nn.Module):
    """Towers and names of open_clip's ``CustomTextCLIP``, whose own trunks are full-size."""

    def __init__(self, sizes: Sizes, tanh_text: bool):
        super().__init__()
        self.visual = nn.Module()
        self.visual.trunk = timm.create_model(
            sizes.trunk, pretrained=False, img_size=sizes.image, embed_dim=sizes.width,
            depth=sizes.layers, num_heads=sizes.heads, mlp_ratio=(sizes.mlp + 0.5) / sizes.width,
            num_classes=0, global_pool="map", dynamic_img_size=True,
        )  # fmt: skip
        approximate = "tanh" if tanh_text else "none"
        self.text = TextTransformer(
            context_length=sizes.context, vocab_size=sizes.vocabulary, width=sizes.text_width,
            heads=sizes.text_heads, layers=sizes.text_layers, output_dim=sizes.width,
            mlp_ratio=(sizes.text_mlp + 0.5) / sizes.text_width, no_causal_mask=True,
            pool_type="last", proj_bias=True,
            norm_layer=lambda width: open_clip.transformer.LayerNorm(width, eps=1e-6),
            act_layer=lambda: nn.GELU(approximate=approximate),
        )  # fmt: skip
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(()))
        randomise(self)
        self.eval()


def _dense(values, out, norm, mlp):
    pooled = out(values)
    return pooled + mlp(norm(pooled))


@torch.no_grad()
def huggingface_outputs(model, pixels, other_pixels, tokens) -> Outputs:
    def images(pixels, patch=model.config.vision_config.patch_size):
        pixels = torch.from_numpy(pixels)
        found = model.vision_model(pixels, interpolate_pos_encoding=True)
        head, width = model.vision_model.head, model.config.vision_config.hidden_size
        weight, bias = head.attention.in_proj_weight, head.attention.in_proj_bias
        values = functional.linear(found.last_hidden_state, weight[-width:], bias[-width:])
        dense = _dense(values, head.attention.out_proj, head.layernorm, head.mlp)
        shape = (len(pixels), pixels.shape[2] // patch, pixels.shape[3] // patch, width)
        return found.pooler_output.numpy(), dense.reshape(shape).numpy()

    both = model(input_ids=torch.from_numpy(tokens), pixel_values=torch.from_numpy(pixels))
    texts = model.text_model(torch.from_numpy(tokens)).pooler_output.numpy()
    logits = both.logits_per_image.numpy()
    return _outputs(images(pixels), images(other_pixels), texts, logits)


@torch.no_grad()
def open_clip_outputs(model: OpenClip, pixels, other_pixels, tokens) -> Outputs:
    trunk = model.visual.trunk

    def images(pixels):
        pixels = torch.from_numpy(pixels)
        features = trunk.forward_features(pixels)
        pool = trunk.attn_pool
        values = pool.kv(features)[..., features.shape[-1] :]
        dense = _dense(values, pool.proj, pool.norm, pool.mlp)
        patch = trunk.patch_embed.patch_size[0]
        shape = (len(pixels), pixels.shape[2] // patch, pixels.shape[3] // patch, -1)
        return trunk.forward_head(features).numpy(), dense.reshape(shape).numpy()

    found = images(pixels)
    texts = model.text(torch.from_numpy(tokens))
    unit = [functional.normalize(x, dim=-1) for x in (torch.from_numpy(found[0]), texts)]
    logits = unit[0] @ unit[1].T * model.logit_scale.exp() + model.logit_bias
    return _outputs(found, images(other_pixels), texts.numpy(), logits.numpy())


def _outputs(images, other_images, texts, logits) -> Outputs:
    return Outputs(*images, texts, logits, *other_images)


def huggingface_files(model: transformers.SiglipModel) -> dict[str, dict]:
    """Return the configuration files that are published beside ``model.safetensors``."""
    processor = {
        "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2,
        "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    config = json.loads(model.config.to_json_string(use_diff=True))
    return {"config.json": config, "preprocessor_config.json": processor}


def open_clip_files(sizes: Sizes, tanh_text: bool) -> dict[str, dict]:
    """Return ``open_clip_config.json``, as open_clip's ``ViT-*-SigLIP*.json``."""
    text = {
        "context_length": sizes.context, "vocab_size": sizes.vocabulary,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": sizes.text_width, "heads": sizes.text_heads, "layers": sizes.text_layers,
        "mlp_ratio": (sizes.text_mlp + 0.5) / sizes.text_width, "no_causal_mask": True,
        "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
    }  # fmt: skip
    if tanh_text:
        text["act_kwargs"] = {"approximate": "tanh"}
    vision = {
        "image_size": sizes.image, "timm_model_name": sizes.trunk, "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none",
    }  # fmt: skip
    model = {
        "embed_dim": sizes.width, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": vision, "text_cfg": text,
    }  # fmt: skip
    preprocess = {
        "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash",
    }  # fmt: skip
    return {"open_clip_config.json": {"model_cfg": model, "preprocess_cfg": preprocess}}


def save(model: nn.Module, files: dict[str, dict], folder: Path, name: str) -> Path:
    """Write the tensors, and the configuration files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / name)
    for file_name, content in files.items():
        (folder / file_name).write_text(json.dumps(content))
    return folder / name


def inputs(sizes: Sizes, other: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels [2, 3, S, S], pixels [1, 3, *other] and tokens [3, L]."""
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, 3, sizes.image, sizes.image)).astype(np.float32)
    others = rng.standard_normal((1, 3, *other)).astype(np.float32)
    tokens = rng.integers(0, sizes.vocabulary, (3, sizes.context))
    tokens[1, sizes.context // 2 :] = 1
    return pixels, others, tokens
