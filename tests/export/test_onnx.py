"""ONNX programs, run by onnxruntime: embeddings and probabilities are the package's."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regionclip_jax
from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, save_model
from regionclip_jax.commands.export import main as export
from regionclip_jax.models.eva_transformer import EVAConfig
from regionclip_jax.models.siglip_image import SigLIPImageConfig
from regionclip_jax.models.siglip_text import SigLIPTextConfig
from regionclip_jax.text.tokenizer import TokenizerSource

GOLDEN = Path(__file__).parents[1] / "golden"
SIDE = 96
BOXES = np.array([[5, 5, 40, 50], [50, 10, 85, 30], [0, 0, 90, 60]], np.float32)
# Relative to the largest magnitude.
TOLERANCE = 1e-4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def libraries():
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")


@pytest.fixture
def configs(nano_configs):
    vit = nano_configs["vit"]
    text = SigLIPTextConfig(
        vocab_size=420, context_length=16, width=64, heads=2, layers=1, tokenizer="siglip2"
    )
    return nano_configs | {
        "eva": dataclasses.replace(vit, image=EVAConfig(16, 2, 64, 2, mlp_width=100)),
        "siglip": dataclasses.replace(
            vit, image=SigLIPImageConfig(16, 2, 64, 2), text=text, embed_dim=64, logit_bias=True
        ),
    }


def require_close(found, expected) -> None:
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE, error


@pytest.mark.parity
@pytest.mark.parametrize("tower", ["resnet", "vit", "eva", "siglip"])
def test_onnxruntime_computes_the_same(
    tower, configs, random_variables, tmp_path, capsys, run_onnx
):
    config = configs[tower]
    source = TokenizerSource(config.text.tokenizer)
    if tower == "siglip":
        source = TokenizerSource("siglip2", GOLDEN / "siglip2_tokenizer.json")
    variables = random_variables(abstract_variables(config))
    ones = jax.tree.map(np.ones_like, variables["batch_stats"])
    variables |= {"batch_stats": ones}
    save_model(tmp_path / "model", variables, ModelCard(config, {}), source)
    model = regionclip_jax.load(tmp_path / "model", short_side=SIDE, max_long_side=SIDE)
    vocabulary = model.vocabulary(["cat", "tree"], templates="plain")
    vocabulary.save(tmp_path / "names.npz")
    output = tmp_path / "onnx"
    flags = ["--names", tmp_path / "names.npz", "--size", SIDE, "--num_boxes", 3]
    arguments = [tmp_path / "model", "--format", "onnx", "--output", output, *flags]
    assert export([*map(str, arguments)]) == 0, capsys.readouterr().err

    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    canvas[:64] = image
    embeddings, probabilities = run_onnx(output / "regions.onnx", canvas, np.int32([64, 96]), BOXES)
    expected = model.encode_regions(image, BOXES)
    require_close(embeddings, expected)
    require_close(probabilities, model.classify(expected, vocabulary))

    clip, own = model.clip
    tokens = jnp.asarray(source.load()(["cat"], config.text.context_length).clip(0, 400))
    (text,) = run_onnx(output / "text.onnx", np.asarray(tokens[0]))
    require_close(text, np.asarray(clip.apply(own, tokens, method=clip.encode_text))[0])
    side = config.preprocessing.resolution
    square = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    (whole,) = run_onnx(output / "image.onnx", square)
    preprocessing = config.preprocessing
    pixels = (square / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    pixels = jnp.asarray(pixels[None], jnp.float32)
    require_close(whole, np.asarray(clip.apply(own, pixels, method=clip.encode_image))[0])
    about = json.loads((output / "model.json").read_text())
    assert about["names"] == ["cat", "tree"] and len(about["programs"]) == 3
    assert "note: no detection.onnx" in capsys.readouterr().out


def test_a_tower_that_cannot_be_converted_is_named(
    nano_configs, nano_variables, tmp_path, capsys, monkeypatch
):
    from jax2onnx.plugins import plugin_system

    save_model(tmp_path / "model", nano_variables("vit"), ModelCard(nano_configs["vit"], {}))
    plugin_system.import_all_plugins()
    monkeypatch.delitem(plugin_system.PLUGIN_REGISTRY, "conv_general_dilated")
    flags = [
        "--format",
        "onnx",
        "--output",
        str(tmp_path / "onnx"),
        "--names",
        "cat",
        "--size",
        "96",
    ]
    assert export([str(tmp_path / "model"), *flags]) == 1
    error = capsys.readouterr().err
    assert re.search(
        r"image tower of the kind 'vit': jax2onnx cannot convert it .*stablehlo", error
    )


def test_a_file_in_the_way_is_refused(nano_configs, nano_variables, tmp_path, capsys):
    save_model(tmp_path / "model", nano_variables("vit"), ModelCard(nano_configs["vit"], {}))
    (tmp_path / "taken").write_text("")
    flags = ["--format", "onnx", "--output", str(tmp_path / "taken"), "--names", "cat"]
    assert export([str(tmp_path / "model"), *flags]) == 1
    assert "expected a directory, found the file" in capsys.readouterr().err
