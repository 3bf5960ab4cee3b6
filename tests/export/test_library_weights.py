"""Exported weights in open_clip, transformers and torch: the embeddings are the package's.

``pip install -e ".[parity]"`` has the libraries. Both sides compute in fp32.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, load_model, save_model
from regionclip_jax.artifacts.tokenizer_file import tokenizer_of
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.export.weights import export_weights
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.siglip_text import SigLIPTextConfig
from regionclip_jax.text.tokenizer import TokenizerSource, tokenizer_named

GOLDEN = Path(__file__).parents[1] / "golden"
# Relative to the largest magnitude.
TOLERANCE = 1e-5
TEXTS = ["a photo of a cat", "two dogs, one of them red!", "Brücke"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def libraries():
    for name in ("torch", "transformers", "timm", "open_clip"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def small_siglip():
    """Configs of SigLIP: one of two blocks, and one with timm's trunk, which fixes the sizes."""

    def siglip(preset: str, **changes):
        config = PRESETS[preset]
        tokenizer = tokenizer_named(config.text.tokenizer, GOLDEN / VOCABULARIES[preset])
        text = SigLIPTextConfig(
            vocab_size=tokenizer.vocab_size, context_length=16, width=48, heads=4, layers=2,
            tokenizer=config.text.tokenizer,
        )  # fmt: skip
        image = dataclasses.replace(config.image, **changes)
        return dataclasses.replace(config, text=text, image=image, embed_dim=image.width)

    return siglip


VOCABULARIES = {
    "ViT-B-32-SigLIP2-256": "siglip2_tokenizer.json",
    "ViT-B-16-SigLIP2-256": "siglip2_tokenizer.json",
}


def embeddings(directory: Path, texts: list[str]) -> tuple[np.ndarray, ...]:
    """Return pixels [2, 3, R, R], tokens, and the package's embeddings of both."""
    variables, card = load_model(directory)
    config = card.architecture
    side = config.preprocessing.resolution
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, side, side, 3)).astype(np.float32)
    tokenizer = tokenizer_of(directory, config.text).load()
    tokens = tokenizer(texts, config.text.context_length)
    images, texts = jax.jit(CLIP(config).apply)(variables, pixels, tokens)
    return pixels.transpose(0, 3, 1, 2), tokens, np.asarray(images), np.asarray(texts)


def save(directory: Path, config, random_variables, tokenizer: TokenizerSource | None = None):
    variables = random_variables(abstract_variables(config))
    variables["params"]["logit_scale"] = np.float32(2.5)
    variables = jax.tree_util.tree_map_with_path(_plausible, variables)
    save_model(directory, variables, ModelCard(config, {"run": "test"}), tokenizer)
    return directory


def _plausible(path, leaf):
    """Scale maps by their inputs: with others, sharp attention amplifies the last digits."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name.endswith(("scale", "var")) and leaf.ndim:
        return 1 + np.abs(leaf)
    if name.endswith(("kernel", "projection")):
        return leaf * np.float32(10 * np.prod(leaf.shape[:-1]) ** -0.5)
    return leaf


def require_equal(found, expected) -> None:
    found = found.detach().numpy()
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE, error


def open_clip_model(directory: Path):
    import open_clip

    return open_clip.create_model(f"local-dir:{directory}").eval()


def require_equal_in_open_clip(directory: Path, exported: Path) -> None:
    import torch

    pixels, tokens, images, texts = embeddings(directory, TEXTS)
    model = open_clip_model(exported)
    with torch.no_grad():
        require_equal(model.encode_image(torch.from_numpy(pixels)), images)
        require_equal(model.encode_text(torch.from_numpy(tokens)), texts)
    scale = load_model(directory)[0]["params"]["logit_scale"]
    assert model.logit_scale.item() == scale


@pytest.mark.parity
@pytest.mark.parametrize(
    "changes",
    [
        {"tower": "resnet"},
        {"tower": "vit"},
        {"tower": "vit", "activation": "gelu", "mlp_width": 200, "eps": 1e-6},
        {"tower": "vit", "activation": "gelu_tanh", "logit_bias": True},
    ],
    ids=str,
)
def test_open_clip_computes_the_same(changes, small_configs, random_variables, tmp_path):
    changes = dict(changes)
    config = small_configs[changes.pop("tower")]
    bias = {"logit_bias": changes.pop("logit_bias", False)}
    text = dataclasses.replace(config.text, **changes)
    image = dataclasses.replace(config.image, **changes) if changes else config.image
    config = dataclasses.replace(config, text=text, image=image, **bias)
    directory = save(tmp_path / "model", config, random_variables)
    export_weights(directory, "openclip", tmp_path / "exported")
    require_equal_in_open_clip(directory, tmp_path / "exported")


@pytest.mark.parity
@pytest.mark.parametrize("preset", ["EVA02-B-16"])
def test_open_clip_computes_the_same_eva(preset, random_variables, tmp_path):
    """timm's trunk has its full size; the text tower is small."""
    config = PRESETS[preset]
    text = dataclasses.replace(config.text, width=64, heads=2, layers=2)
    config = dataclasses.replace(config, text=text)
    directory = save(tmp_path / "model", config, random_variables)
    export_weights(directory, "openclip", tmp_path / "exported")
    require_equal_in_open_clip(directory, tmp_path / "exported")


@pytest.mark.parity
def test_open_clip_computes_the_same_siglip(small_siglip, random_variables, tmp_path):
    """timm's trunk has its full size; the text tower is small."""
    preset = "ViT-B-32-SigLIP2-256"
    config = small_siglip(preset)
    source = TokenizerSource(config.text.tokenizer, GOLDEN / VOCABULARIES[preset])
    directory = save(tmp_path / "model", config, random_variables, source)
    export_weights(directory, "openclip", tmp_path / "exported")
    require_equal_in_open_clip(directory, tmp_path / "exported")
    bias = load_model(directory)[0]["params"]["logit_bias"]
    assert open_clip_model(tmp_path / "exported").logit_bias.item() == bias


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_transformers_computes_the_same_clip(activation, small_configs, random_variables, tmp_path):
    import torch
    import transformers

    config = small_configs["vit"]
    text, image = (
        dataclasses.replace(tower, activation=activation, mlp_width=200)
        for tower in (config.text, config.image)
    )
    config = dataclasses.replace(config, text=text, image=image)
    directory = save(tmp_path / "model", config, random_variables)
    exported = tmp_path / "exported"
    export_weights(directory, "safetensors", exported)
    pixels, tokens, images, texts = embeddings(directory, TEXTS)
    model, report = transformers.CLIPModel.from_pretrained(exported, output_loading_info=True)
    assert not any(report.values()), report
    model.eval()
    visual, textual = model.vision_model, model.text_model
    with torch.no_grad():
        pooled = visual(torch.from_numpy(pixels)).pooler_output
        require_equal(model.visual_projection(pooled), images)
        pooled = textual(torch.from_numpy(tokens)).pooler_output
        require_equal(model.text_projection(pooled), texts)
    ids = transformers.AutoTokenizer.from_pretrained(exported)(TEXTS)["input_ids"]
    for row, found in zip(tokens, ids, strict=True):
        assert row[: len(found)].tolist() == found
    processor = transformers.AutoImageProcessor.from_pretrained(exported)
    assert tuple(processor.image_mean) == config.preprocessing.mean


@pytest.mark.parity
def test_transformers_computes_the_same_siglip(small_siglip, random_variables, tmp_path):
    import torch
    import transformers

    preset = "ViT-B-16-SigLIP2-256"
    config = small_siglip(preset, layers=2, width=48, heads=4, mlp_width=100)
    source = TokenizerSource(config.text.tokenizer, GOLDEN / VOCABULARIES[preset])
    directory = save(tmp_path / "model", config, random_variables, source)
    exported = tmp_path / "exported"
    export_weights(directory, "safetensors", exported)
    pixels, tokens, images, texts = embeddings(directory, TEXTS)
    model, report = transformers.SiglipModel.from_pretrained(exported, output_loading_info=True)
    assert not any(report.values()), report
    model.eval()
    with torch.no_grad():
        require_equal(model.vision_model(torch.from_numpy(pixels)).pooler_output, images)
        require_equal(model.text_model(torch.from_numpy(tokens)).pooler_output, texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert tokenizer.pad_token_id == 0 and tokenizer.model_max_length == 16
    processor = transformers.AutoImageProcessor.from_pretrained(exported)
    assert tuple(processor.image_std) == config.preprocessing.std


def test_torch_reads_the_file_for_the_reference(small_configs, random_variables, tmp_path):
    import torch

    directory = save(tmp_path / "model", small_configs["resnet"], random_variables)
    path = tmp_path / "exported.pth"
    export_weights(directory, "regionclip_pth", path)
    expected = read_tensors(path)
    for mapped in (False, True):
        found = torch.load(path, weights_only=True, mmap=mapped)
        assert found.keys() == {"model"} and found["model"].keys() == expected.keys()
        for name, tensor in found["model"].items():
            assert tensor.dtype == torch.float32 and tensor.is_contiguous()
            np.testing.assert_array_equal(tensor.numpy(), expected[name], err_msg=name)
    # As torch writes it itself, the archive is read the same way.
    torch.save(found, tmp_path / "saved.pth")
    again = read_tensors(tmp_path / "saved.pth")
    assert all(np.array_equal(again[name], expected[name]) for name in expected)
