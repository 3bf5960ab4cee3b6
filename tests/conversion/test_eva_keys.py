"""EVA-02-CLIP: names of two libraries, the architecture of a file, and files that do not fit."""

import dataclasses
import json
import pickle
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import checkpoints
import regionclip_jax
from parity import eva
from parity.comparison import assert_equal_to_reference
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, load_model
from regionclip_jax.conversion import eva_keys
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.conversion.choices import NO_CHOICE
from regionclip_jax.conversion.configuration_files import complete_config
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.conversion.layouts import source_shape
from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.eva_transformer import rotary_positions
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.structures import Preprocessing

# Preset -> name of timm's trunk.
TRUNKS = {
    "EVA02-B-16": "eva02_base_patch16_clip_224",
    "EVA02-L-14": "eva02_large_patch14_clip_224",
    "EVA02-L-14-336": "eva02_large_patch14_clip_336",
}
# The right column of the table in docs/reference/checkpoints.md#eva-02 -> the left one.
ORIGINAL = {
    "attn.q_proj.bias": "attn.q_bias", "attn.v_proj.bias": "attn.v_bias",
    "attn.norm": "attn.inner_attn_ln", "mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2",
    "mlp.fc2": "mlp.w3", "mlp.norm": "mlp.ffn_ln", "visual.trunk.": "visual.",
}  # fmt: skip


def to_original(tensors):
    """Return tensors by the names of the original repository, with its tables of positions."""
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in ORIGINAL.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    config, _ = eva.tiny()
    cos, sin = (np.asarray(x)[0, 1:].repeat(2, 1) for x in rotary_positions(config.image, 5, 5))
    for place in ("rope", "blocks.0.attn.rope", "blocks.1.attn.rope"):
        renamed |= {f"visual.{place}.freqs_cos": cos, f"visual.{place}.freqs_sin": sin}
    return renamed


@pytest.fixture(scope="module")
def tensors(make_state_dict):
    """Return the small model by open_clip's and timm's names, with the vocabulary of CLIP."""
    tensors = make_state_dict("eva_tiny")
    name = "text.token_embedding.weight"
    return tensors | {name: np.pad(tensors[name], ((0, 49408 - 600), (0, 0)))}


SCHEMES = {
    "timm": lambda tensors: tensors,
    "original": to_original,
    "texts without prefix": lambda tensors: {
        name.removeprefix("text."): x for name, x in to_original(tensors).items()
    },
    "in a wrapper": lambda tensors: {f"module.{k}": v for k, v in to_original(tensors).items()},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_of_names_gives_the_same_weights(tmp_path, tensors, write_safetensors, scheme):
    source = write_safetensors(SCHEMES[scheme](tensors), "model.safetensors")
    conversion = convert_checkpoint(source, tmp_path / "model")
    assert conversion.unused == () and len(conversion.bookkeeping) == 6 * (scheme != "timm")
    assert all("rope.freqs_" in name for name in conversion.bookkeeping)
    assert any("no open_clip_config.json" in note for note in conversion.notes)
    variables, card = load_model(tmp_path / "model")
    config, expected = eva.tiny()
    rule = "bicubic_antialiased" if scheme == "timm" else "bicubic"
    image = dataclasses.replace(config.image, position_resize=rule)
    text = dataclasses.replace(config.text, vocab_size=49408)
    assert any("unit length" in note for note in conversion.notes)
    assert card.architecture == dataclasses.replace(
        config, image=image, text=text, normalize_map=True
    )
    assert text.activation == "gelu" and image.eps == 1e-6 and image.rotary_grid == 16
    assert card.architecture.preprocessing == Preprocessing(50, resize="bicubic_truncate")
    jax.tree.map(
        np.testing.assert_array_equal, variables["params"]["visual"], expected["params"]["visual"]
    )
    blocks = (tree["params"]["text"]["blocks"] for tree in (variables, expected))
    jax.tree.map(np.testing.assert_array_equal, *blocks)


def test_regions_are_not_averages_at_unit_length_if_the_user_says_so(
    tmp_path, tensors, write_safetensors
):
    conversion = convert_checkpoint(
        write_safetensors(tensors), tmp_path / "model", normalize_map=False
    )
    assert not conversion.card.architecture.normalize_map
    assert not any("unit length" in note for note in conversion.notes)


def test_a_model_in_half_precision_detects_by_name(tmp_path, tensors, write_safetensors):
    half = {name: x.astype(np.float16) for name, x in tensors.items()}
    convert_checkpoint(write_safetensors(half), tmp_path / "model")
    model = regionclip_jax.load(tmp_path / "model", short_side=50, max_long_side=60)
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    boxes = np.array([[2, 3, 30, 38], [20, 0, 48, 24]], np.float32)
    names = model.vocabulary(["cat", "traffic light"], templates="plain")
    found = model.detect(image, names, boxes=boxes, nms_threshold=1.0)
    assert len(found) == 4 and set(found.names) == {"cat", "traffic light"}
    assert ((0 < found.scores) & (found.scores < 1)).all()


@pytest.mark.parametrize("name", ["EVA02-B-16", "EVA02-L-14-336"])
def test_every_preset_maps_to_timms_names_and_back(name):
    config, shapes = PRESETS[name], {}
    for path, leaf in flatten(abstract_variables(config)).items():
        where = eva_keys.origin(path.partition("/")[2], len(leaf.shape))
        shapes[where.name] = source_shape(leaf.shape, where)
    tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    assert eva_keys.infer_config(tensors, "file") == config
    # Two maps of 3 numbers in each block have biases that CLIP's have; keys have none.
    assert sum(key.startswith("visual.") for key in shapes) == 8 + 21 * config.image.layers
    with pytest.raises(KeyError, match="visual/new/kernel"):
        eva_keys.origin("visual/new/kernel", 2)


def changed(tensors, **changes):
    """Return tensors with others for some names, in which "__" stands for a dot."""
    changes = {name.replace("__", "."): x for name, x in changes.items()}
    return {name: x for name, x in (tensors | changes).items() if x is not None}


ONES = np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"visual__trunk__blocks__0__attn__q_bias": ONES,
             "visual__trunk__blocks__0__attn__qkv__weight": ONES},
            "attn.q_proj.bias and .*attn.q_bias: expected one of these tensors",
        ),
        ({"visual__trunk__blocks__1__gamma_1": ONES}, "others such as .*blocks.1.gamma_1"),
        ({"visual__trunk__blocks__1__attn__k_proj__bias": ONES}, r"k_proj\.bias"),
        ({"visual__trunk__blocks__1__mlp__norm__bias": None}, r"mlp\.norm\.bias: missing"),
        ({"visual__trunk__pos_embed": np.ones((25, 128), np.float32)}, r"n\*n \+ 1 rows, found 25"),
        ({"visual__extra": ONES}, "others such as .*visual.extra"),
        (
            {"visual__trunk__patch_embed__proj__weight": np.ones((96, 3, 10, 10), np.float32)},
            "multiple of 64 channels, the width of a head, found 96",
        ),
    ],
)  # fmt: skip
def test_another_tower_is_refused(tmp_path, tensors, write_safetensors, changes, message):
    source = write_safetensors(changed(tensors, **changes))
    with pytest.raises(CheckpointMismatch, match=message):
        convert_checkpoint(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("prefix", ["visual.", "visual.trunk."])
def test_eva_01_and_eva_02_e_are_refused_by_name(tmp_path, tensors, write_safetensors, prefix):
    block = f"{prefix}blocks.0.attn."
    packed = {name: x for name, x in tensors.items() if not name.startswith("visual.")}
    packed |= {f"{block}{name}": ONES for name in ("q_bias", "v_bias", "qkv.weight")}
    with pytest.raises(CheckpointMismatch, match="qkv.weight, as in EVA-01 and EVA-02-E"):
        convert_checkpoint(write_safetensors(packed), tmp_path / "model")


def test_a_table_of_other_rotary_positions_is_refused(tmp_path, tensors, write_safetensors):
    original = to_original(tensors)
    name = "visual.rope.freqs_cos"
    config, _ = eva.tiny()
    image = dataclasses.replace(config.image, rotary_grid=5)
    # Whole numbers: a model that does not interpolate its positions.
    table = np.asarray(rotary_positions(image, 5, 5).cos)[0, 1:].repeat(2, 1)
    source = write_safetensors(original | {name: table})
    with pytest.raises(CheckpointMismatch, match=f"{name}: expected the angles .*16 positions"):
        convert_checkpoint(source, tmp_path / "model")


def test_a_text_tower_comes_from_the_same_family(tmp_path, tensors, write_safetensors, pico_file):
    image = {name: x for name, x in to_original(tensors).items() if name.startswith("visual.")}
    source = write_safetensors(image, "image.pt")
    whole = write_safetensors(tensors, "whole.pt")
    convert_checkpoint(source, tmp_path / "model", text_from=whole)
    _, card = load_model(tmp_path / "model")
    assert card.architecture.text.activation == "gelu"
    with pytest.raises(CheckpointMismatch, match=r"pico_clip\.pth: expected the text tower"):
        convert_checkpoint(source, tmp_path / "other", text_from=pico_file())
    with pytest.raises(CheckpointMismatch, match=r"whole\.pt: expected the text tower"):
        convert_checkpoint(pico_file(), tmp_path / "other", text_from=whole)


def test_the_tensors_of_a_deepspeed_checkpoint_are_read(tmp_path):
    path = tmp_path / "mp_rank_00_model_states.pkl"
    path.write_bytes(pickle.dumps({"module": {"visual.cls_token": ONES}, "epoch": 3}))
    assert list(read_tensors(path)) == ["visual.cls_token"]


def test_the_scale_may_stand_in_the_text_tower(tensors):
    original = to_original(tensors)
    scale = original.pop("logit_scale")
    original["text.logit_scale"] = scale
    renamed, names = eva_keys.rename(original, "student")
    assert renamed["logit_scale"] == scale and names["logit_scale"] == ("text.logit_scale",)
    renamed, names = eva_keys.rename(original | {"logit_scale": scale + 1}, "student")
    assert renamed["logit_scale"] == scale + 1 and names["logit_scale"] == ("logit_scale",)


OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "image_size": 224, "timm_model_name": TRUNKS["EVA02-B-16"],
            "timm_model_pretrained": False, "timm_pool": "token", "timm_proj": None,
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
        },
        "custom_text": True,
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic"},
}  # fmt: skip


def complete(tmp_path, vision_cfg=None, name="EVA02-B-16"):
    content = json.loads(json.dumps(OPEN_CLIP))
    content["model_cfg"]["vision_cfg"] |= vision_cfg or {}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    names = {"visual.trunk.blocks.0.attn.q_proj.weight": ONES}
    file = tmp_path / "model.safetensors"
    return complete_config(PRESETS[name], file, names, NO_CHOICE, image=True, text=True).config


def test_a_configuration_of_open_clip_is_honoured(tmp_path):
    preset = PRESETS["EVA02-B-16"]
    pixels = Preprocessing(224, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), "bicubic_truncate")
    assert complete(tmp_path) == dataclasses.replace(preset, preprocessing=pixels)


@pytest.mark.parametrize(
    ("vision_cfg", "message"),
    [
        ({"timm_pool": "avg"}, "timm_pool: expected 'token', found 'avg'"),
        ({"timm_proj": "linear"}, "timm_proj: expected None, found 'linear'"),
        ({"timm_model_name": "eva_giant_patch14_224"}, "timm_model_name: expected one of"),
        ({"timm_model_name": TRUNKS["EVA02-L-14"]}, "width: expected 768, as in the tensors"),
        ({"timm_model_name": None, "timm_pool": None}, "MLP: expected 2048, .* found 3072"),
        ({"image_size": 336}, "cells of a side of 336 pixels: expected 14"),
    ],
)
def test_a_configuration_of_another_tower_is_refused(tmp_path, vision_cfg, message):
    with pytest.raises(CheckpointMismatch, match=message):
        complete(tmp_path, vision_cfg)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("name", "heads"), [*((name, None) for name in TRUNKS), ("EVA02-B-16", 8)])
def test_towers_of_published_sizes_equal_timms_and_open_clips(tmp_path, name, heads):
    """Two blocks of each tower, on the own grid and another, and heads of 96 channels.

    Measured: at most 7.4e-6, the logits of L-14; 2.1e-6 for the rest.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    pytest.importorskip("open_clip")
    make_eva = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_eva.py"))
    preset = PRESETS[name]
    text = dataclasses.replace(preset.text, layers=2)
    sizes = ("context_length", "vocab_size", "width", "heads", "layers")
    model = make_eva["build"](
        TRUNKS[name],
        preset.embed_dim,
        {key: getattr(text, key) for key in sizes},
        depth=2,
        num_heads=heads or preset.image.heads,
    )
    tensors = {key: x.numpy() for key, x in model.state_dict().items()}
    source = checkpoints.write_safetensors(tmp_path / "model.safetensors", tensors)
    convert_checkpoint(source, tmp_path / "model")
    variables, card = load_model(tmp_path / "model")
    image = dataclasses.replace(preset.image, layers=2)
    assert card.architecture == dataclasses.replace(
        preset, image=image, text=text, normalize_map=True
    )
    # Weights do not depend on the number of heads.
    image = dataclasses.replace(image, heads=heads or preset.image.heads)
    clip = CLIP(dataclasses.replace(card.architecture, image=image))
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 49406, (2, 77))
    tokens[:, 9] = 49407
    side, patch = preset.preprocessing.resolution, preset.image.patch_size
    for height, width in ((side, side), (side - 5 * patch, side + 3 * patch)):
        pixels = rng.standard_normal((1, 3, height, width)).astype(np.float32)
        expected = make_eva["outputs"](model, *map(torch.from_numpy, (pixels, tokens)))
        compared = eva.compare_outputs(clip, variables, pixels, tokens, expected, name, 1e-4)
        assert_equal_to_reference(compared)
