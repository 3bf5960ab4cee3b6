"""SigLIPs of preset sizes with two blocks a tower, against transformers, timm and open_clip.

Both sides compute in fp32. The vocabularies are small ones, so that the files are.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.siglip import compare_converted
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, load_card
from regionclip_jax.conversion import siglip_configuration, siglip_keys
from regionclip_jax.conversion.choices import NO_CHOICE
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.text.tokenizer import tokenizer_named

GOLDEN = Path(__file__).parents[1] / "golden"
# Names of timm's trunks that do not follow from a preset's.
SIZES = {"B": "base", "L": "large", "SO400M": "so400m", "gopt": "giantopt"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def libraries():
    for name in ("torch", "transformers", "timm", "open_clip"):
        pytest.importorskip(name)
    import siglip_models

    return siglip_models


def _sizes(libraries, name: str, vocabulary: int):
    preset = PRESETS[name]
    image, text = preset.image, preset.text
    size = SIZES[name.split("-")[1]]
    resolution = preset.preprocessing.resolution
    return libraries.Sizes(
        f"vit_{size}_patch{image.patch_size}_siglip_{resolution}", image.patch_size, resolution,
        image.width, image.heads, image.mlp_width or 4 * image.width, 2, vocabulary,
        text.context_length, text.width, text.heads, text.mlp_width or 4 * text.width, 2,
    )  # fmt: skip


def _compare(libraries, name, model, files, outputs, sizes, vocabulary, tmp_path):
    other = (3 * sizes.patch, 5 * sizes.patch)
    inputs = libraries.inputs(sizes, other)
    names = ("pixels", "other_pixels", "tokens")
    arrays = dict(zip(names, inputs, strict=True)) | outputs(model, *inputs)._asdict()
    path = libraries.save(model, files, tmp_path / "published", "model.safetensors")
    shutil.copy(GOLDEN / vocabulary, path.with_name("tokenizer.json"))
    convert_checkpoint(path, tmp_path / "model")
    errors = compare_converted(tmp_path / "model", arrays)
    print(name, {key: f"{value:.1e}" for key, value in errors.items()})
    assert max(errors.values()) < 1e-4, errors
    return load_card(tmp_path / "model").architecture


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-SigLIP",
        "ViT-SO400M-14-SigLIP-384",
        "ViT-L-16-SigLIP2-256",
        "ViT-gopt-16-SigLIP2-256",
    ],
)
def test_a_preset_equals_transformers(libraries, name, tmp_path):
    """Largest error seen: 2e-6 of the largest value."""
    preset = PRESETS[name]
    first = preset.text.tokenizer == "siglip"
    vocabulary, num_ids = (
        ("siglip_tokenizer.json", 110) if first else ("siglip2_tokenizer.json", 420)
    )
    sizes = _sizes(libraries, name, num_ids)
    model = libraries.huggingface(sizes)
    found = _compare(
        libraries, name, model, libraries.huggingface_files(model), libraries.huggingface_outputs,
        sizes, vocabulary, tmp_path,
    )  # fmt: skip
    expected = dataclasses.replace(
        preset,
        image=dataclasses.replace(preset.image, layers=2),
        text=dataclasses.replace(preset.text, layers=2, vocab_size=num_ids),
        preprocessing=dataclasses.replace(preset.preprocessing, resize="bilinear_round"),
    )
    assert found == expected


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-SigLIP",
        "ViT-B-32-SigLIP2-256",
        "ViT-SO400M-14-SigLIP",
        "ViT-SO400M-16-SigLIP2-256",
    ],
)
def test_a_preset_equals_timm_and_open_clip(libraries, name, tmp_path):
    """Largest error seen: 2e-6 of the largest value."""
    preset = PRESETS[name]
    first = preset.text.tokenizer == "siglip"
    vocabulary, num_ids = (
        ("siglip_tokenizer.json", 110) if first else ("siglip2_tokenizer.json", 420)
    )
    sizes = _sizes(libraries, name, num_ids)
    model = libraries.OpenClip(sizes, tanh_text=not first)
    files = libraries.open_clip_files(sizes, tanh_text=not first)
    found = _compare(
        libraries, name, model, files, libraries.open_clip_outputs,
        sizes, vocabulary, tmp_path,
    )  # fmt: skip
    tanh = name in ("ViT-B-32-SigLIP2-256", "ViT-SO400M-16-SigLIP2-256")
    assert found.image.activation == ("gelu_tanh" if tanh else "gelu")
    assert found.text.activation == ("gelu" if first else "gelu_tanh")
    assert found.image.mlp_width == preset.image.mlp_width


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in PRESETS if "SigLIP" in name])
def test_open_clips_own_model_of_a_preset_has_its_names_and_numbers(libraries, name, tmp_path):
    """The whole model, without memory for its weights; the activation is that of its library."""
    import open_clip
    import torch

    stated = open_clip.get_model_config(name)
    if stated is None:
        assert name == "ViT-SO400M-14-SigLIP2-384"  # Hugging Face's name alone
        return
    arguments = {key: value for key, value in stated.items() if key != "custom_text"}
    with torch.device("meta"):
        model = open_clip.model.CustomTextCLIP(**arguments)
    tensors = {
        key: np.broadcast_to(np.float32(0), tuple(value.shape))
        for key, value in model.state_dict().items()
    }
    assert siglip_keys.is_siglip(tensors)
    renamed, _ = siglip_keys.rename(tensors, "student")
    half = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    content = {"model_cfg": stated, "preprocess_cfg": half}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    inferred = siglip_keys.infer_config(renamed, name)
    completed = siglip_configuration.complete(
        inferred, tmp_path / "model.safetensors", tensors, NO_CHOICE
    )
    found = completed.config

    trunk, preset = model.visual.trunk, PRESETS[name]
    activations = {"none": "gelu", "tanh": "gelu_tanh"}
    image = activations[getattr(trunk.blocks[0].mlp.act, "approximate", "tanh")]
    text = activations[model.text.transformer.resblocks[0].mlp[1].approximate]
    assert found == dataclasses.replace(
        preset,
        image=dataclasses.replace(
            preset.image, activation=image, position_resize="bicubic_antialiased"
        ),
        text=dataclasses.replace(preset.text, activation=text, tokenizer=inferred.text.tokenizer),
        preprocessing=dataclasses.replace(preset.preprocessing, resize="bicubic_truncate"),
    )
    assert trunk.blocks[0].attn.num_heads == trunk.attn_pool.num_heads == found.image.heads
    assert trunk.norm.eps == trunk.attn_pool.norm.eps == found.image.eps
    assert model.text.ln_final.eps == found.text.eps
    used = {
        siglip_keys.origin(path.partition("/")[2], len(leaf.shape)).name
        for path, leaf in flatten(abstract_variables(found)).items()
    }
    assert used == set(renamed)


PIECES = (
    "a", "Cat", "zebra", "  ", "\t\r\n", "\x0b", "\x1f", "\x85", "\u3000", "&amp;", "_", "\x00",
    "👩‍👩‍👧", "cafÃ©", "İ", "ß", "ΑΣ", "١٢", "'S", "don't", "!", "...", "▁", "ﬁ", "e\u0301",
    "<", ">", "/",
)  # fmt: skip
NASTY = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
)


@pytest.fixture(scope="module")
def theirs(libraries):
    """Ids of transformers by kind; ``golden/make_siglip_vocabularies.py`` says the same."""
    from transformers import Siglip2Tokenizer, SiglipTokenizer

    pytest.importorskip("sentencepiece")
    first = SiglipTokenizer(str(GOLDEN / "siglip_spiece.model"))
    model = json.loads((GOLDEN / "siglip2_tokenizer.json").read_text())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    second = Siglip2Tokenizer(vocab=model["vocab"], merges=merges, padding_side="right")

    def siglip(text, length):
        how = dict(padding="max_length", truncation=True, max_length=length)
        return first(text, **how)["input_ids"]

    def siglip2(text, length):
        ids = second(text, add_special_tokens=False)["input_ids"][: length - 1]
        return ids + [1] + [0] * (length - 1 - len(ids))

    return {"siglip": siglip, "siglip2": siglip2}


@pytest.mark.property
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("siglip", "siglip_spiece.model"),
        ("siglip", "siglip_tokenizer.json"),
        ("siglip2", "siglip2_tokenizer.json"),
    ],
)
@settings(max_examples=300)
@given(text=NASTY, length=st.sampled_from([3, 16, 64]))
def test_any_text_has_the_ids_of_transformers(theirs, kind, file, text, length):
    (row,) = tokenizer_named(kind, GOLDEN / file)([text], length)
    assert row.tolist() == theirs[kind](text, length), repr(text)
