"""The text tower and the ViT tower against RegionCLIP's and OpenAI's."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS, CLIPConfig


@functools.partial(jax.jit, static_argnums=0)
def encode_text(model, variables, tokens):
    return model.apply(variables, tokens, method=model.encode_text)


def openai_config(keywords: str) -> CLIPConfig:
    """From the arguments of OpenAI's constructor, as they are stored."""
    kw = json.loads(keywords)
    return CLIPConfig(
        image_resolution=kw["image_resolution"],
        vision_layers=kw["vision_layers"],
        vision_width=kw["vision_width"],
        vision_patch_size=kw["vision_patch_size"],
        vision_heads=kw["vision_width"] // 64,
        embed_dim=kw["embed_dim"],
        vocab_size=kw["vocab_size"],
        context_length=kw["context_length"],
        text_width=kw["transformer_width"],
        text_heads=kw["transformer_heads"],
        text_layers=kw["transformer_layers"],
    )


def vit_outputs(tensors, to_variables, arrays, pixels):
    """Tokens after the last block, image and text embeddings, and the logits between them."""
    config = openai_config(str(arrays["kw"]))
    model, variables = CLIP(config), to_variables(tensors, config)
    apply = jax.jit(functools.partial(model.apply, capture_intermediates=True))
    (images, texts, log_scale), caught = apply(
        variables,
        jnp.asarray(pixels.transpose(0, 2, 3, 1)),
        jnp.asarray(arrays["tokens"], jnp.int32),
    )
    last = f"block{config.vision_layers - 1}"
    tokens = caught["intermediates"]["visual"]["blocks"][last]["__call__"][0]
    unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts)]
    return tokens, images, texts, jnp.exp(log_scale) * unit[0] @ unit[1].T


@pytest.mark.parity
def test_the_tiny_text_tower_equals_the_references(
    golden, reference_tensors, to_variables, relative_error
):
    """Five captions, one of them cut before its end token. Measured: 6.1e-7."""
    arrays = golden("text_tiny")
    model = CLIP(PRESETS["tiny"])
    variables = to_variables(reference_tensors("tiny_pretrain"), model.config)
    tokens = jnp.asarray(arrays["tokens"], jnp.int32)
    texts = encode_text(model, variables, tokens)
    assert relative_error(texts, arrays["emb_eot"]) < 1e-5


@pytest.mark.parity
def test_the_tiny_vit_equals_openais(golden, reference_tensors, to_variables, relative_error):
    """Measured: 9.4e-7 for the tokens, at most 6.0e-7 for the rest."""
    arrays = golden("vit_tiny")
    outputs = vit_outputs(reference_tensors("vit_tiny"), to_variables, arrays, arrays["input"])
    names = ("last_block_tokens", "image_features", "text_features", "logits_per_image")
    for found, name in zip(outputs, names, strict=True):
        assert relative_error(found, arrays[name]) < 1e-5, name


@pytest.mark.slow
@pytest.mark.parity
def test_the_text_tower_of_rn50_equals_the_references(
    large_golden, large_golden_folder, reference_tensors, to_variables, relative_error
):
    """Measured: 1.4e-6."""
    arrays = large_golden("text_rn50")
    model = CLIP(PRESETS["RN50"])
    tensors = reference_tensors("rn50_lang", root=large_golden_folder)
    tokens = jnp.asarray(arrays["tokens"], jnp.int32)
    texts = encode_text(model, to_variables(tensors, model.config), tokens)
    assert relative_error(texts, arrays["emb_eot"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parity
def test_vit_b32_equals_openais(
    large_golden, large_golden_folder, reference_tensors, to_variables, relative_error
):
    """Measured: at most 2.1e-6, the logits."""
    arrays = large_golden("vit_b32")
    tensors = reference_tensors("vit_b32", root=large_golden_folder)
    rng = np.random.default_rng(int(arrays["seed"]))
    pixels = rng.standard_normal((2, 3, 224, 224)).astype(np.float32)
    tokens, *outputs = vit_outputs(tensors, to_variables, arrays, pixels)
    assert relative_error(tokens[:, ::7, ::16], arrays["last_block_tokens_sample"]) < 1e-4
    names = ("image_features", "text_features", "logits_per_image")
    for found, name in zip(outputs, names, strict=True):
        assert relative_error(found, arrays[name]) < 1e-4, name
