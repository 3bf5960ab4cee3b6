"""SigLIPs of transformers and of open_clip (``golden/make_siglip.py``), converted and compared."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import checkpoints
from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import load_card, load_model
from regionclip_jax.artifacts.tokenizer_file import FILE_NAME
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.conversion.convert import convert_checkpoint
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.concept_classifier import concept_logits
from regionclip_jax.models.siglip_image import SigLIPImageConfig
from regionclip_jax.models.siglip_text import SigLIPTextConfig

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGURATIONS = json.loads((GOLDEN / "siglip_configurations.json").read_text())
VOCABULARIES = {"huggingface": "siglip2_tokenizer.json", "open_clip": "siglip_tokenizer.json"}
LIBRARIES = pytest.mark.parametrize("library", ["huggingface", "open_clip"])


@pytest.fixture
def published(tmp_path):
    """``published(library)``: a checkpoint in a folder with the files of its publisher."""

    def write(library: str) -> Path:
        folder = tmp_path / "published"
        folder.mkdir()
        for name, content in CONFIGURATIONS[library].items():
            (folder / name).write_text(json.dumps(content))
        shutil.copy(GOLDEN / VOCABULARIES[library], folder / "tokenizer.json")
        path = folder / "model.safetensors"
        shutil.copy(GOLDEN / f"siglip_{library}.safetensors", path)
        return path

    return write


def _edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def compare(directory: Path, arrays, relative_error) -> dict[str, float]:
    """Return the relative errors of a converted model against a library's outputs."""
    variables, card = load_model(directory)
    model, variables = CLIP(card.architecture), jax.tree.map(jnp.asarray, variables)

    @jax.jit
    def outputs(pixels, other, tokens):
        found, others = (
            model.apply(variables, x.transpose(0, 2, 3, 1), method=model.image_features)
            for x in (pixels, other)
        )
        return found, others, model.apply(variables, tokens, method=model.encode_text)

    found, other, texts = outputs(
        jnp.array(arrays["pixels"]),
        jnp.array(arrays["other_pixels"]),
        jnp.array(arrays["tokens"], jnp.int32),
    )
    detection = card.scores.detection
    logits = concept_logits(found.whole, texts, detection.temperature) + detection.score_bias
    computed = {
        "whole": found.whole, "dense": found.map, "texts": texts, "logits": logits,
        "other_whole": other.whole, "other_dense": other.map,
    }  # fmt: skip
    return {name: relative_error(value, arrays[name]) for name, value in computed.items()}


@pytest.mark.parity
@LIBRARIES
def test_a_converted_siglip_equals_its_library(library, published, tmp_path, relative_error):
    """Largest error seen: 2e-6 of the largest value."""
    conversion = convert_checkpoint(published(library), tmp_path / "model")
    assert not conversion.unused
    errors = compare(tmp_path / "model", np.load(GOLDEN / f"siglip_{library}.npz"), relative_error)
    assert max(errors.values()) < 1e-4, errors
    card = load_card(tmp_path / "model")
    vocabulary = (GOLDEN / VOCABULARIES[library]).read_bytes()
    assert (tmp_path / "model" / FILE_NAME).read_bytes() == vocabulary
    hf = library == "huggingface"
    assert card.architecture.image == SigLIPImageConfig(
        patch_size=8 if hf else 16,
        layers=2,
        width=24,
        heads=3 if hf else 12,
        activation="gelu_tanh" if hf else "gelu",
        position_resize="bicubic" if hf else "bicubic_antialiased",
        mlp_width=34 if hf else 38,
    )
    assert card.architecture.text == SigLIPTextConfig(
        vocab_size=420 if hf else 110,
        context_length=16,
        width=20,
        heads=2 if hf else 4,
        layers=2,
        activation="gelu_tanh" if hf else "gelu",
        tokenizer="siglip2" if hf else "siglip",
        mlp_width=28 if hf else 26,
    )
    preprocessing = card.architecture.preprocessing
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
    assert preprocessing.resize == ("bilinear_round" if hf else "bicubic_truncate")
    assert preprocessing.resolution == (40 if hf else 48) and card.architecture.logit_bias


def test_the_directory_of_a_tokenizer_is_checked_by_its_digest(published, tmp_path):
    convert_checkpoint(published("huggingface"), tmp_path / "model")
    path = tmp_path / "model" / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b"<mask>", b"<cask>"))
    with pytest.raises(CheckpointMismatch, match=f"{FILE_NAME}: changed since it was written"):
        load_model(tmp_path / "model")


@LIBRARIES
def test_a_siglip_without_its_vocabulary_names_the_file_to_bring(library, published, tmp_path):
    path = published(library)
    path.with_name("tokenizer.json").unlink()
    with pytest.raises(
        CheckpointMismatch, match="tokenizer.json or spiece.model.*--tokenizer FILE"
    ):
        convert_checkpoint(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    other = GOLDEN / VOCABULARIES["open_clip" if library == "huggingface" else "huggingface"]
    with pytest.raises(CheckpointMismatch, match="expected the (420|110) token ids"):
        convert_checkpoint(path, tmp_path / "model", tokenizer=other)
    convert_checkpoint(path, tmp_path / "model", tokenizer=GOLDEN / VOCABULARIES[library])
    assert (tmp_path / "model" / FILE_NAME).is_file()


def test_spiece_model_is_a_vocabulary_too(published, tmp_path):
    pytest.importorskip("sentencepiece")
    path = published("open_clip")
    path.with_name("tokenizer.json").unlink()
    shutil.copy(GOLDEN / "siglip_spiece.model", path.with_name("spiece.model"))
    convert_checkpoint(path, tmp_path / "model")
    assert load_card(tmp_path / "model").architecture.text.tokenizer == "siglip"


def test_a_tokenizer_for_a_model_that_reads_none_is_refused(pico_file, tmp_path):
    with pytest.raises(CheckpointMismatch, match="leave out --tokenizer"):
        convert_checkpoint(
            pico_file(), tmp_path / "model", tokenizer=GOLDEN / "siglip_tokenizer.json"
        )


@LIBRARIES
def test_without_its_configuration_the_file_is_refused(library, published, tmp_path):
    path = published(library)
    name = {"huggingface": "config.json", "open_clip": "open_clip_config.json"}[library]
    path.with_name(name).unlink()
    with pytest.raises(CheckpointMismatch, match=f"expected {name} beside it"):
        convert_checkpoint(path, tmp_path / "model")


@pytest.mark.parametrize(
    ("library", "name", "keys", "value", "message"),
    [
        ("huggingface", "config.json", ("model_type",), "siglip2", "model_type: .*NaFlex"),
        ("huggingface", "config.json", ("vision_config", "vision_use_head"), False, "vision_use_h"),
        ("huggingface", "config.json", ("vision_config", "hidden_size"), 25, "width: expected 24"),
        ("huggingface", "config.json", ("text_config", "intermediate_size"), 80, "MLP: expected"),
        ("huggingface", "config.json", ("text_config", "projection_size"), 20, "embedding width"),
        ("huggingface", "config.json", ("vision_config", "image_size"), 48, "cells of a side"),
        ("huggingface", "config.json", ("vision_config", "num_attention_heads"), 5, "divides its"),
        ("huggingface", "config.json", ("text_config", "hidden_act"), "relu", "hidden_act"),
        ("open_clip", "open_clip_config.json", ("model_cfg", "embed_dim"), 25, "embedding width"),
        (
            "open_clip", "open_clip_config.json",
            ("model_cfg", "vision_cfg", "timm_model_name"), "vit_pe_core_base_patch16_224",
            "timm_model_name: expected a name such as",
        ),
        (
            "open_clip", "open_clip_config.json", ("model_cfg", "vision_cfg", "timm_pool"), "avg",
            "timm_pool: expected 'map'",
        ),
        (
            "open_clip", "open_clip_config.json", ("model_cfg", "text_cfg", "no_causal_mask"),
            False, "no_causal_mask: expected True",
        ),
        (
            "open_clip", "open_clip_config.json", ("model_cfg", "text_cfg", "proj_type"), "none",
            "proj_type: expected 'linear'",
        ),
        (
            "open_clip", "open_clip_config.json", ("model_cfg", "text_cfg", "ls_init_value"), 0.1,
            "ls_init_value: expected no such key",
        ),
    ],
)  # fmt: skip
def test_a_configuration_of_another_model_is_refused(
    published, tmp_path, library, name, keys, value, message
):
    path = published(library)

    def change(content):
        *outer, last = keys
        for key in outer:
            content = content[key]
        content[last] = value

    _edit(path.with_name(name), change)
    with pytest.raises(CheckpointMismatch, match=message):
        convert_checkpoint(path, tmp_path / "model")


def _tensors(library: str) -> dict[str, np.ndarray]:
    return read_tensors(GOLDEN / f"siglip_{library}.safetensors")


@pytest.mark.parametrize(
    ("library", "change", "message"),
    [
        (
            "huggingface",
            lambda t: {
                n: v.reshape(len(v), -1) if n.endswith("patch_embedding.weight") else v
                for n, v in t.items()
            },
            "NaFlex models are not supported",
        ),
        (
            "open_clip",
            lambda t: t | {"visual.trunk.embeds.proj.weight": np.ones((2, 2), np.float32)},
            "NaFlex models are not supported",
        ),
        (
            "open_clip",
            lambda t: t | {"visual.trunk.blocks.0.ls1.gamma": np.ones(24, np.float32)},
            "found 1 others such as .*ls1.gamma",
        ),
        (
            "huggingface",
            lambda t: {n: v for n, v in t.items() if not n.startswith("text_model.head")},
            "SigLIP's text tower with its head",
        ),
        (
            "open_clip",
            lambda t: {n: v for n, v in t.items() if not n.startswith("text.text_proj")},
            "SigLIP's text tower with its head",
        ),
        (
            "huggingface",
            lambda t: {n: v for n, v in t.items() if n != "vision_model.head.probe"},
            "visual.attn_pool.probe: missing",
        ),
        (
            "open_clip",
            lambda t: {n: v for n, v in t.items() if "attn_pool.kv" not in n},
            "visual.attn_pool.in_proj_weight: missing",
        ),
        (
            "huggingface",
            lambda t: {
                n: v[:-1] if n == "vision_model.embeddings.position_embedding.weight" else v
                for n, v in t.items()
            },
            r"expected n\*n rows, found 24",
        ),
    ],
)
def test_a_file_of_another_architecture_is_refused(published, tmp_path, library, change, message):
    path = published(library)
    checkpoints.write_safetensors(path, change(_tensors(library)))
    with pytest.raises(CheckpointMismatch, match=message):
        convert_checkpoint(path, tmp_path / "model")


def test_a_rest_of_pixels_behind_the_last_patch_keeps_the_stated_resolution(published, tmp_path):
    """As of SO400M: 384 pixels are 27 patches of 14 and 6 pixels."""
    path = published("huggingface")

    def change(content):
        content["vision_config"]["image_size"] = 45

    _edit(path.with_name("config.json"), change)
    convert_checkpoint(path, tmp_path / "model")
    variables, card = load_model(tmp_path / "model")
    assert card.architecture.preprocessing.resolution == 45
    rng = np.random.default_rng(0)
    pixels = jnp.array(rng.standard_normal((1, 45, 45, 3)), jnp.float32)
    model, variables = CLIP(card.architecture), jax.tree.map(jnp.asarray, variables)

    @jax.jit
    def wholes(pixels, sizes):
        images = ((pixels[:, :40, :40], None), (pixels, None), (pixels, sizes))
        return [model.apply(variables, *x, method=model.image_features).whole for x in images]

    alone, canvas, sized = wholes(pixels, jnp.array([[45, 45]]))
    np.testing.assert_allclose(canvas, alone, atol=1e-5)
    np.testing.assert_allclose(sized, alone, atol=1e-5)
