"""Towers of CLIP against those of the reference and of OpenAI, stage by stage."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from parity.comparison import Comparison, relative_error
from parity.golden import GOLDEN, Arrays, clip_variables, load, stored
from regionclip_jax.models.clip import CLIP, encode_regions, logit_scale_and_bias
from regionclip_jax.models.presets import PRESETS, openai_heads
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.ops.normalization import normalize_images
from regionclip_jax.ops.roi_align import roi_align
from regionclip_jax.structures import Preprocessing

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@functools.cache
def tiny_variables(tower: str = "student") -> dict:
    """Return the variables of the tiny CLIP model of most golden files."""
    return clip_variables("tiny_pretrain", PRESETS["tiny"], tower)


def _tiny(dtype) -> tuple[CLIP, dict]:
    return CLIP(PRESETS["tiny"], dtype=dtype), tiny_variables()


# --- ResNet ---------------------------------------------------------------------------------------


def _to_nhwc(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


@functools.partial(jax.jit, static_argnums=0)
def _stages(model, variables, pixels):
    """Return the NCHW output of each stage, with layer4 on the whole map."""

    def run(model, x):
        outputs = {}
        for name in STAGES:
            outputs[name] = x = getattr(model.visual, name)(x)
        return outputs

    outputs = model.apply(variables, pixels, method=run)
    return {name: x.transpose(0, 3, 1, 2) for name, x in outputs.items()}


@functools.partial(jax.jit, static_argnums=0)
def _embeddings(model, variables, pixels, rois):
    """Return the embedding of the image, means of region crops, and embeddings of regions."""
    whole = model.apply(variables, pixels, method=model.encode_image)
    features = model.apply(variables, pixels, method=model.image_features)
    crops = roi_align(features.map, rois[None], model.crop_size, 1 / model.stride)
    regions = encode_regions(model, variables, features, rois[None])
    return whole, crops[0].mean((1, 2)), regions[0]


def _canvas(arrays: Arrays) -> jax.Array:
    image = jnp.asarray(arrays["image_uint8"].transpose(1, 2, 0)[None])
    normalize = jax.jit(normalize_images, static_argnums=2)
    return normalize(image, jnp.array([image.shape[1:3]]), PRESETS["tiny"].preprocessing)


def compare_pixels() -> list[Comparison]:
    """Compare normalised pixels."""
    arrays = stored("backbone_tiny")
    pixels = _canvas(arrays).transpose(0, 3, 1, 2)[:, :, ::5, ::3]
    return [Comparison("pixels", relative_error(pixels, arrays["input"]), 1e-6)]


def compare_stages(dtype=jnp.float32) -> list[Comparison]:
    """Compare every stage on an image of the training size.

    Stored: stem to layer3 at [:, ::3, ::5, ::3], layer4 whole.
    """
    arrays = stored("backbone_tiny")
    actual = _stages(*_tiny(dtype), _canvas(arrays))
    comparisons = []
    for name in STAGES:
        part = actual[name] if name == "layer4" else actual[name][:, ::3, ::5, ::3]
        comparisons.append(Comparison(name, relative_error(part, arrays[name]), 1e-5))
    return comparisons


def compare_small_stages(dtype=jnp.float32) -> list[Comparison]:
    """Compare every stage on 96 x 128 pixels, where layer4 pools an odd row.

    Stored: stem to layer2 at [:, ::3, ::2, ::3].
    """
    arrays = stored("backbone_tiny")
    actual = _stages(*_tiny(dtype), _to_nhwc(arrays["small_input"]))
    comparisons = []
    for name in STAGES:
        part = actual[name][:, ::3, ::2, ::3] if name in STAGES[:3] else actual[name]
        error = relative_error(part, arrays[f"small_{name}"])
        comparisons.append(Comparison(f"small {name}", error, 1e-5))
    return comparisons


def _compare_embeddings(arrays, model, variables, pixels, tolerance) -> list[Comparison]:
    names = {"whole image": "attnpool", "crop means": "roi_pooled_mean", "regions": "roi_feats"}
    actual = _embeddings(model, variables, pixels, jnp.asarray(arrays["rois"]))
    return [
        Comparison(name, relative_error(x, arrays[key]), tolerance)
        for (name, key), x in zip(names.items(), actual, strict=True)
    ]


def compare_embeddings(dtype=jnp.float32) -> list[Comparison]:
    """Compare embeddings of the image and of its regions."""
    arrays = stored("backbone_tiny")
    return _compare_embeddings(arrays, *_tiny(dtype), _canvas(arrays), 1e-5)


def compare_full_size(preset: str, arch: str, folder: Path) -> list[Comparison]:
    """Compare stages and embeddings of a tower of full size, from the folder of large files."""
    arrays = load(f"backbone_{arch}", folder)
    model = CLIP(PRESETS[preset])
    variables = clip_variables(f"{arch}_detector_gt", model.config, folder=folder)
    actual = _stages(model, variables, _to_nhwc(arrays["input"]))
    small = _stages(model, variables, _to_nhwc(arrays["small_input"]))
    pairs = {"layer4": (actual["layer4"], arrays["layer4"])}
    for name in STAGES:
        pairs[f"{name} means"] = actual[name].mean((2, 3)), arrays[f"{name}_mean_c"]
        pairs[f"{name} sample"] = actual[name][:, ::17, ::7, ::5], arrays[f"{name}_sample"]
        if f"small_{name}" in arrays:
            pairs[f"small {name}"] = small[name], arrays[f"small_{name}"]
    comparisons = [Comparison(name, relative_error(*pair), 1e-4) for name, pair in pairs.items()]
    pixels = _to_nhwc(arrays["input"])
    return comparisons + _compare_embeddings(arrays, model, variables, pixels, 1e-4)


def compare_resnet(dtype=jnp.float32) -> list[Comparison]:
    """Compare pixels, stages, and embeddings of an image and of its regions."""
    return [
        *compare_pixels(),
        *compare_stages(dtype),
        *compare_small_stages(dtype),
        *compare_embeddings(dtype),
    ]


# --- transformers ---------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(model, variables, tokens):
    return model.apply(variables, tokens, method=model.encode_text)


def _compare_text(arrays, model, variables, tolerance) -> list[Comparison]:
    tokens = jnp.asarray(arrays["tokens"], jnp.int32)
    texts = _encode_text(model, variables, tokens)
    return [Comparison("texts", relative_error(texts, arrays["emb_eot"]), tolerance)]


def compare_text(dtype=jnp.float32) -> list[Comparison]:
    """Compare embeddings of five captions, one of them truncated before its end token."""
    return _compare_text(stored("text_tiny"), *_tiny(dtype), 1e-5)


def compare_text_of_rn50(folder: Path) -> list[Comparison]:
    """Compare embeddings of captions by RN50's text tower."""
    model = CLIP(PRESETS["RN50"])
    variables = clip_variables("rn50_lang", model.config, folder=folder)
    return _compare_text(load("text_rn50", folder), model, variables, 1e-4)


def _openai_config(keywords: str) -> CLIPConfig:
    """Return the config for the stored arguments of OpenAI's constructor."""
    kw = json.loads(keywords)
    width = kw["vision_width"]
    return CLIPConfig(
        image=ViTConfig(
            kw["vision_patch_size"], kw["vision_layers"], width, heads=openai_heads(width)
        ),
        text=TextConfig(
            kw["vocab_size"],
            kw["context_length"],
            width=kw["transformer_width"],
            heads=kw["transformer_heads"],
            layers=kw["transformer_layers"],
        ),
        preprocessing=Preprocessing(kw["image_resolution"]),
        embed_dim=kw["embed_dim"],
    )


@functools.partial(jax.jit, static_argnums=0)
def _vit_outputs(model, variables, pixels, tokens):
    """Return tokens after the last block, embeddings of images and texts, and their logits."""
    (images, texts), caught = model.apply(variables, pixels, tokens, capture_intermediates=True)
    log_scale, _ = logit_scale_and_bias(variables["params"])
    last = f"block{model.config.image.layers - 1}"
    blocks = caught["intermediates"]["visual"]["blocks"]
    unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts)]
    return {
        "last_block_tokens": blocks[last]["__call__"][0],
        "image_features": images,
        "text_features": texts,
        "logits_per_image": jnp.exp(log_scale) * unit[0] @ unit[1].T,
    }


def _compare_vit(arch, folder, arrays, pixels, dtype, tolerance) -> list[Comparison]:
    model = CLIP(_openai_config(str(arrays["kw"])), dtype=dtype)
    variables = clip_variables(arch, model.config, folder=folder)
    tokens = jnp.asarray(arrays["tokens"], jnp.int32)
    actual = _vit_outputs(model, variables, _to_nhwc(pixels), tokens)
    if "last_block_tokens" not in arrays:
        sample = actual.pop("last_block_tokens")[:, ::7, ::16]
        actual["last_block_tokens_sample"] = sample
    return [Comparison(k, relative_error(x, arrays[k]), tolerance) for k, x in actual.items()]


def compare_vit(dtype=jnp.float32) -> list[Comparison]:
    """Compare tokens, embeddings and logits of a tiny ViT."""
    arrays = stored("vit_tiny")
    return _compare_vit("vit_tiny", GOLDEN, arrays, arrays["input"], dtype, 1e-5)


def compare_vit_b32(folder: Path) -> list[Comparison]:
    """Compare tokens, embeddings and logits of ViT-B/32 on random pixels."""
    arrays = load("vit_b32", folder)
    rng = np.random.default_rng(int(arrays["seed"]))
    pixels = rng.standard_normal((2, 3, 224, 224)).astype(np.float32)
    return _compare_vit("vit_b32", folder, arrays, pixels, jnp.float32, 1e-4)
