"""Model directories of earlier versions are readable, one for each card format."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from regionclip_jax.artifacts.detector_heads import load_heads
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, load_model
from regionclip_jax.artifacts.score_settings import complete_scores
from regionclip_jax.artifacts.vocabulary import Vocabulary, describe_encoder, require_matching
from regionclip_jax.conversion import clip_keys
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.conversion.layouts import build_variables
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.settings import ScoreSettings
from regionclip_jax.structures import Preprocessing

GOLDEN = Path(__file__).parents[1] / "golden"


# The numbers differ from the defaults, so that the test fails if one is not read from the card.
FORMAT_2 = CLIPConfig(
    image=ViTConfig(patch_size=8, layers=1, width=8, heads=2, activation="gelu", eps=1e-6),
    text=TextConfig(
        vocab_size=6, context_length=5, width=8, heads=2, layers=1,
        activation="gelu_tanh", eps=1e-4, tokenizer="other",
    ),
    preprocessing=Preprocessing(16, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), "bicubic_truncate"),
    embed_dim=4,
    logit_bias=True,
)  # fmt: skip


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(GOLDEN / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Directory written at f2fd52e: converted ``pico_clip.pth``, a localizer and a box head."""
    return unpack("model_format_1", tmp_path_factory.mktemp("format_1"))


def test_a_model_of_format_1_loads_bit_for_bit(directory):
    variables, card = load_model(directory)
    assert card.version == "0.1.0" and card.source["file"] == "pico_clip.pth"
    # Without a checksum and settings of scores; docs/using_models.md names the defaults.
    assert card.parameters_sha256 is None and card.scores == ScoreSettings()
    scores = complete_scores(card.scores, variables["params"], None)
    assert scores.detection.temperature == pytest.approx(
        np.exp(-variables["params"]["logit_scale"])
    )
    assert scores.detection.objectness == "sigmoid"
    shapes, tensors = abstract_variables(card.architecture), read_tensors(GOLDEN / "pico_clip.pth")
    expected = flatten(build_variables(shapes, clip_keys.origin, tensors, where="", remedy="")[0])
    loaded = flatten(variables)
    assert loaded.keys() == expected.keys()
    for path in loaded:
        np.testing.assert_array_equal(loaded[path], expected[path], err_msg=path)


def test_a_model_of_format_1_keeps_the_text_tower_hash_of_old_vocabularies(directory):
    """Compare with the result of ``text_tower_hash`` at f2fd52e."""
    variables, card = load_model(directory)
    encoder = describe_encoder(card.architecture, variables["params"])
    assert encoder["parameters_sha256"] == (
        "a3d8fb7e17456456027804de89586f91b195e9b2978cb05c09b339d4d9717a62"
    )


def test_a_model_of_format_2_loads_bit_for_bit_with_its_vocabulary(tmp_path):
    directory = unpack("model_format_2", tmp_path)
    variables, card = load_model(directory)
    assert card.architecture == FORMAT_2 and card.source == {"run": "train_clip"}
    rng = np.random.default_rng(0)
    for path, leaf in sorted(flatten(variables).items()):
        expected_leaf = rng.standard_normal(leaf.shape).astype(np.float32)
        np.testing.assert_array_equal(leaf, expected_leaf, err_msg=path)
    vocabulary = Vocabulary.load(directory / "vocabulary.npz")
    require_matching(vocabulary, describe_encoder(card.architecture, variables["params"]))


def test_a_localizer_and_heads_of_format_1_load(directory):
    variables, card = load_localizer(directory)
    assert card.architecture.pyramid_channels == 4 and card.source["classes"] == ["cat"]
    assert all(np.isfinite(leaf).all() for leaf in flatten(variables).values())
    heads, card = load_heads(directory)
    assert set(heads["params"]) == {"box_head"} and card.source["classes"] == ["cat"]
