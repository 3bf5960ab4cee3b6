"""SigLIPs of transformers and of open_clip (``golden/make_siglip.py``), converted and compared."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import checkpoints
import regionclip_jax
from parity.siglip import compare_converted
from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    flatten,
    load_card,
    load_model,
    save_model,
)
from regionclip_jax.artifacts.tokenizer_file import FILE_NAME, tokenizer_of
from regionclip_jax.assembly.concept_pool import cached_vocabulary, embed_names
from regionclip_jax.assembly.models import tokenizer_source
from regionclip_jax.assembly.training_run import as_clip
from regionclip_jax.conversion import siglip_keys
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.conversion.layouts import source_shape
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.siglip_image import SigLIPImageConfig
from regionclip_jax.models.siglip_text import SigLIPTextConfig
from regionclip_jax.settings import ConfigError, ModelSettings, UserError

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


@pytest.mark.parity
@LIBRARIES
def test_a_converted_siglip_equals_its_library(library, published, tmp_path):
    """Largest error seen: 2e-6 of the largest value."""
    conversion = convert_checkpoint(published(library), tmp_path / "model")
    assert not conversion.unused
    errors = compare_converted(tmp_path / "model", np.load(GOLDEN / f"siglip_{library}.npz"))
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


def test_the_text_tower_of_another_family_is_refused(published, pico_file, tmp_path):
    siglip, other = published("open_clip"), pico_file()
    for source, text_from in ((siglip, other), (other, siglip)):
        with pytest.raises(CheckpointMismatch, match="text tower|text_projection"):
            convert_checkpoint(source, tmp_path / "model", text_from=text_from)


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
    arrays = np.load(GOLDEN / "siglip_huggingface.npz")
    pixels = np.pad(
        arrays["pixels"].transpose(0, 2, 3, 1), ((0, 0), (0, 5), (0, 5), (0, 0)), "wrap"
    )
    model, variables = CLIP(card.architecture), jax.tree.map(jnp.asarray, variables)
    sizes = jnp.full((2, 2), 45)
    features = jax.jit(
        lambda pixels: model.apply(variables, pixels, sizes, method=model.image_features)
    )(jnp.array(pixels))
    np.testing.assert_allclose(features.whole, arrays["whole"], atol=1e-5)
    np.testing.assert_allclose(features.map, arrays["dense"], atol=1e-5)


def test_a_converted_siglip_detects_by_sigmoid_scores(published, tmp_path):
    """Regions, texts, probabilities and detections of the API; the vocabulary of an evaluation."""
    directory = tmp_path / "model"
    convert_checkpoint(published("huggingface"), directory)
    model = regionclip_jax.load(directory, short_side=40, max_long_side=64)
    names = ["cat", "red umbrella", "traffic light"]
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    boxes = np.array([[3, 5, 30, 36], [20, 2, 55, 25]], np.float32)
    regions, texts = model.encode_regions(image, boxes), model.encode_text(names)
    assert regions.shape == (2, 24) and texts.shape == (3, 24)
    detection = model.scores.detection
    assert detection.score_activation == "sigmoid" and model.config.logit_bias
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (regions, texts)]
    logits = unit[0] @ unit[1].T / detection.temperature + detection.score_bias
    expected = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(model.classify(regions, names), expected, rtol=1e-4)
    found = model.detect(image, names, boxes=boxes, nms_threshold=1.0, score_threshold=0)
    assert len(found) == 6
    np.testing.assert_allclose(np.sort(found.scores), np.sort(expected.ravel()), rtol=1e-4)

    source = tokenizer_of(directory, model.config.text)
    arguments = (*model.clip, names, "clip")
    vocabulary = cached_vocabulary(tmp_path / "vocabulary.npz", *arguments, source)
    np.testing.assert_array_equal(vocabulary.embeddings, texts)
    with pytest.raises(UserError, match="expected its vocabulary"):
        embed_names(*arguments)


def test_jobs_take_the_vocabulary_of_the_model_they_start_from(published, tmp_path, monkeypatch):
    directory = tmp_path / "model"
    card = convert_checkpoint(published("huggingface"), directory).card
    monkeypatch.setitem(PRESETS, "tiny_siglip", card.architecture)
    source = tokenizer_source(ModelSettings(preset="tiny_siglip", init_from=str(directory)))
    assert source == ("siglip2", directory / FILE_NAME)
    # It reaches the processes that load data.
    tokens = pickle.loads(pickle.dumps(source)).load()(["a cat"], 16)
    assert tokens.shape == (1, 16) and tokens[0, -1] == 0
    with pytest.raises(ConfigError, match="init_from: the preset 'tiny_siglip' reads texts with"):
        tokenizer_source(ModelSettings(preset="tiny_siglip", init_from=""))
    variables, _ = load_model(directory)
    with pytest.raises(CheckpointMismatch, match="complete only with its vocabulary"):
        save_model(tmp_path / "other", variables, card)
    assert not (tmp_path / "other").exists()
    as_clip(card.architecture, source)(tmp_path / "trained", variables, {"run": "train_clip"})
    trained = load_card(tmp_path / "trained")
    # The training was one with a softmax.
    assert trained.scores.detection.score_activation == "softmax"
    assert tokenizer_of(tmp_path / "trained", trained.architecture.text).load().vocab_size == 420
    (tmp_path / "trained" / FILE_NAME).unlink()
    with pytest.raises(CheckpointMismatch, match=f"{FILE_NAME}: missing"):
        load_model(tmp_path / "trained")


@pytest.mark.parametrize(
    "name", ["ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP2", "ViT-gopt-16-SigLIP2-256"]
)
def test_the_sizes_of_a_preset_are_inferred_from_its_tensors(name):
    """One block of each tower stands for all."""
    preset = PRESETS[name]
    config = dataclasses.replace(
        preset,
        image=dataclasses.replace(preset.image, layers=1),
        text=dataclasses.replace(preset.text, layers=1),
    )
    tensors = {}
    for path, leaf in flatten(abstract_variables(config)).items():
        source = siglip_keys.origin(path.partition("/")[2], len(leaf.shape))
        shape = source_shape(leaf.shape, source)
        tensors[source.name] = np.broadcast_to(np.float32(0), shape)
    found = siglip_keys.infer_config(tensors, "file")
    image, text = (
        dataclasses.replace(tower, heads=expected.heads)
        for tower, expected in ((found.image, config.image), (found.text, config.text))
    )
    text = dataclasses.replace(text, tokenizer=config.text.tokenizer)
    assert found.preprocessing.resolution == config.preprocessing.resolution
    assert config == dataclasses.replace(
        found, image=image, text=text, preprocessing=config.preprocessing
    )
