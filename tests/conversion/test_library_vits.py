"""ViT CLIPs of open_clip and transformers: converted, they give the numbers of their library.

The golden arrays are of ``golden/make_vits.py``. The slow tests build models of full width with the
libraries (``pip install -e ".[parity]"``); two blocks of each tower stand for all.
"""

import dataclasses
import fnmatch
import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from checkpoints import to_huggingface, write_safetensors
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.conversion.choices import NO_CHOICE, Choice
from regionclip_jax.conversion.configuration_files import complete_config
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.models.clip import CLIP, logit_scale_and_bias
from regionclip_jax.models.open_clip_presets import OPEN_CLIP_VITS
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.structures import Preprocessing

GOLDEN = Path(__file__).parents[1] / "golden"
# Relative to the largest magnitude.
TOLERANCE = 1e-4

OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {
            "layers": 2, "width": 48, "head_width": 24, "patch_size": 14, "mlp_ratio": 4.3637,
            "image_size": 42,
        },
        "text_cfg": {
            "context_length": 12, "vocab_size": 49408, "width": 40, "heads": 5, "layers": 2,
            "mlp_ratio": 3.3,
        },
    }
}  # fmt: skip
HUGGINGFACE = {
    "model_type": "clip",
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 209, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 42, "patch_size": 14, "hidden_act": "gelu",
    },
    "text_config": {
        "hidden_size": 40, "intermediate_size": 132, "num_hidden_layers": 2,
        "num_attention_heads": 5, "max_position_embeddings": 12, "hidden_act": "gelu",
        "eos_token_id": 2,
    },
}  # fmt: skip


def outputs(directory: Path, pixels: np.ndarray, tokens: np.ndarray, **changes) -> dict:
    """Return embeddings, logits and the projected dense map of a model directory.

    Args:
        pixels: normalised [B, 3, H, W].
        changes: fields of the image tower's config.
    """
    variables, card = load_model(directory)
    config = card.architecture
    config = dataclasses.replace(config, image=dataclasses.replace(config.image, **changes))
    model = CLIP(config)

    @jax.jit
    def run(variables, pixels, tokens):
        features = model.apply(variables, pixels, method=model.image_features)
        num, height, width, channels = features.map.shape
        cells = features.map.reshape(-1, 1, 1, channels)
        dense = model.apply(variables, cells, method=model.embed_crops)
        texts = model.apply(variables, tokens, method=model.encode_text)
        return features.whole, texts, dense.reshape(num, height, width, -1)

    with jax.default_matmul_precision("highest"):
        images, texts, dense = map(np.asarray, run(variables, pixels.transpose(0, 2, 3, 1), tokens))
    scale, bias = logit_scale_and_bias(variables["params"])
    unit_images, unit_texts = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)
    )
    logits = np.exp(scale) * unit_images @ unit_texts.T + (0.0 if bias is None else bias)
    return {"images": images, "texts": texts, "logits": logits, "dense": dense}


def errors(actual: dict, expected: dict, suffix: str = "") -> dict[str, float]:
    """Return the largest error of each array, relative to its largest magnitude."""
    found = {}
    for name, value in actual.items():
        right = expected[name + suffix]
        assert value.shape == right.shape, name
        found[name] = float(np.abs(value - right).max() / np.abs(right).max())
    return found


@pytest.fixture
def convert_golden(tmp_path, clip_tensors):
    """``convert_golden(library)``: a model directory, and the golden arrays of the library."""

    def convert(library: str) -> tuple[Path, dict]:
        tensors = clip_tensors("vit_odd")
        if library == "huggingface":
            tensors = to_huggingface(tensors)
            (tmp_path / "config.json").write_text(json.dumps(HUGGINGFACE))
            (tmp_path / "preprocessor_config.json").write_text("{}")
        else:
            (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
        source = write_safetensors(tmp_path / "model.safetensors", tensors)
        convert_checkpoint(source, tmp_path / "model")
        return tmp_path / "model", dict(np.load(GOLDEN / f"vit_{library}.npz"))

    return convert


@pytest.mark.parity
@pytest.mark.parametrize("library", ["open_clip", "huggingface"])
def test_a_small_vit_of_a_library_gives_its_numbers(convert_golden, library):
    """Check GELU, heads, an MLP of another ratio, and positions. Measured: at most 6e-7."""
    directory, expected = convert_golden(library)
    # At the grid of the positions both libraries compute the same.
    for suffix in ("", "_other") if library == "open_clip" else ("_other",):
        actual = outputs(directory, expected[f"pixels{suffix}"], expected["tokens"])
        measured = errors(actual, expected, suffix)
        assert max(measured.values()) < TOLERANCE, measured


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "change"),
    [
        ("open_clip", {"activation": "quick_gelu"}),
        ("open_clip", {"heads": 1}),
        ("open_clip", {"eps": 1e-3}),
        ("open_clip", {"position_resize": "bicubic"}),
        ("huggingface", {"position_resize": "bicubic_antialiased"}),
    ],
)
def test_another_number_would_be_seen(convert_golden, library, change):
    directory, expected = convert_golden(library)
    wrong = outputs(directory, expected["pixels_other"], expected["tokens"], **change)
    assert errors(wrong, expected, "_other")["images"] > 20 * TOLERANCE


def open_clip_config(name: str) -> dict:
    """Return the config of a model of the installed open_clip, without importing it."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is not installed")
    return json.loads((Path(spec.origin).parent / "model_configs" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", sorted(OPEN_CLIP_VITS))
def test_a_preset_is_the_config_of_open_clip(tmp_path, name):
    model_name, _, tag = name.partition("-laion2b")
    content = {"model_cfg": open_clip_config(model_name)}
    if tag:
        content["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    preset = PRESETS[name]
    inferred = dataclasses.replace(
        preset,
        image=dataclasses.replace(preset.image, heads=1, activation="quick_gelu"),
        text=dataclasses.replace(preset.text, heads=1, activation="quick_gelu"),
        preprocessing=Preprocessing(preset.preprocessing.resolution),
    )
    tensors = {"visual.class_embedding": np.ones(1)}
    completed = complete_config(
        inferred, tmp_path / "model.pt", tensors, NO_CHOICE, image=True, text=True
    )
    assert completed.config == preset


def documented_presets() -> list[tuple[str, str, list[str]]]:
    """Return (preset, model of open_clip, patterns of tags) of the table in the documents."""
    text = (Path(__file__).parents[2] / "docs" / "using_models.md").read_text()
    rows = re.findall(r"\| `(ViT-[^`]+)` \| (ViT\S+) \| [^|]+ \| (`[^|]+) \|", text)
    return [(preset, model, re.findall("`([^`]+)`", tags)) for preset, model, tags in rows]


def test_the_documents_list_every_preset_of_a_vit():
    listed = [preset for preset, _, _ in documented_presets()]
    assert sorted(listed) == sorted({*OPEN_CLIP_VITS, "ViT-L/14@336"})


@pytest.mark.slow
def test_every_published_tag_of_a_plain_vit_fits_the_documented_preset():
    pretrained = pytest.importorskip("open_clip.pretrained")
    num_checked = 0
    for model, tags in pretrained._PRETRAINED.items():
        if not re.fullmatch(r"ViT-(B|L|H|g|bigG)-\d\d(-plus)?(-\d+)?", model):
            continue
        for tag, stated in tags.items():
            (name,) = (
                preset
                for preset, of_model, patterns in documented_presets()
                if of_model == model and any(fnmatch.fnmatch(tag, each) for each in patterns)
            )
            config = PRESETS[name]
            activation = "quick_gelu" if stated.get("quick_gelu") else "gelu"
            assert (config.image.activation, config.text.activation) == (activation, activation)
            pixels = config.preprocessing
            assert (pixels.mean, pixels.std) == (tuple(stated["mean"]), tuple(stated["std"]))
            num_checked += 1
    assert num_checked > 60


def text_rows(rng, end: int) -> np.ndarray:
    """Return token ids of three texts, padded with 0."""
    tokens = rng.integers(1, 49406, (3, 77))
    for row, length in enumerate((76, 5, 12)):
        tokens[row, 0], tokens[row, length], tokens[row, length + 1 :] = 49406, end, 0
    return tokens


def two_blocks(name: str) -> CLIPConfig:
    config = PRESETS[name]
    image, text = (dataclasses.replace(tower, layers=2) for tower in (config.image, config.text))
    return dataclasses.replace(config, image=image, text=text)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-32", "ViT-B-16", "ViT-B-16-plus-240", "ViT-L-14-quickgelu", "ViT-H-14", "ViT-g-14",
        "ViT-bigG-14",
    ],
)  # fmt: skip
def test_a_preset_gives_the_numbers_of_open_clip(tmp_path, monkeypatch, name):
    """Check a bare state dict and --preset, at the grid of the positions and at another one.

    Measured: at most 9e-6, in the logits.
    """
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("open_clip.model")
    from library_models import open_clip_outputs, randomize

    stated = open_clip_config(name)
    for part in ("vision_cfg", "text_cfg"):
        stated[part]["layers"] = 2
    model = library.CLIP(**stated).eval()
    randomize(model, seed=0)
    monkeypatch.setitem(PRESETS, name, two_blocks(name))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    convert_checkpoint(tmp_path / "model.pt", tmp_path / "model", choice=Choice(name))

    rng = np.random.default_rng(0)
    tokens = text_rows(rng, 49407)
    patch, side = model.visual.patch_size[0], model.visual.grid_size[0]
    for grid in ((side, side), (side + 2, side + 5)):
        model.visual.grid_size = grid
        positions = {"visual.positional_embedding": model.visual.positional_embedding.data}
        library.resize_pos_embed(positions, model)
        model.visual.positional_embedding.data = positions["visual.positional_embedding"]
        size = (grid[0] * patch, grid[1] * patch)
        pixels = rng.standard_normal((2, 3, *size)).astype(np.float32)
        expected = open_clip_outputs(model, pixels, tokens)
        measured = errors(outputs(tmp_path / "model", pixels, tokens), expected)
        assert max(measured.values()) < TOLERANCE, measured


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "eos_token_id"), [("ViT-B-32", 2), ("ViT-B-16", 49407), ("ViT-H-14", 49407)]
)
def test_a_model_of_transformers_gives_its_numbers(tmp_path, name, eos_token_id):
    """Check the files that transformers writes, for both of its rules of the end token.

    Measured: at most 3e-6.
    """
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from library_models import huggingface_outputs, randomize

    config = two_blocks(name)
    image, text = config.image, config.text
    shared = {"num_hidden_layers": 2, "hidden_act": "gelu"}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            projection_dim=config.embed_dim,
            vision_config=shared | dict(
                hidden_size=image.width, intermediate_size=4 * image.width,
                num_attention_heads=image.heads, patch_size=image.patch_size, image_size=224,
            ),
            text_config=shared | dict(
                hidden_size=text.width, intermediate_size=4 * text.width,
                num_attention_heads=text.heads, eos_token_id=eos_token_id,
            ),
        )
    ).eval()  # fmt: skip
    randomize(model, seed=0)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "model")
    rng = np.random.default_rng(0)
    tokens = text_rows(rng, 49407)
    # transformers pads with the end token.
    tokens[tokens == 0] = 49407
    side = 224 // image.patch_size
    for grid in ((side, side), (side + 2, side + 5)):
        size = (grid[0] * image.patch_size, grid[1] * image.patch_size)
        pixels = rng.standard_normal((2, 3, *size)).astype(np.float32)
        expected = huggingface_outputs(model, pixels, tokens)
        measured = errors(outputs(tmp_path / "model", pixels, tokens), expected)
        assert max(measured.values()) < TOLERANCE, measured
