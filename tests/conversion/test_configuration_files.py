"""Configuration files beside a checkpoint: every number honoured, or the file refused."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from json_changes import texts_with_another_value
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.architecture import require_tokenizer
from regionclip_jax.conversion.choices import NO_CHOICE, Choice
from regionclip_jax.conversion.configuration_files import complete_config
from regionclip_jax.models.modified_resnet import ResNetConfig
from regionclip_jax.models.presets import PRESETS
from regionclip_jax.models.text_transformer import TextConfig
from regionclip_jax.models.towers import CLIPConfig
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.settings import ConfigError
from regionclip_jax.structures import Preprocessing

ONE = np.ones(1, np.float32)
NAMES = {
    "huggingface": {"vision_model.embeddings.class_embedding": ONE},
    "open_clip": {"visual.class_embedding": ONE},
    "resnet": {"visual.conv1.weight": ONE},
    "openai": {
        "visual.class_embedding": ONE, "input_resolution": ONE, "context_length": ONE,
        "vocab_size": ONE,
    },
    "half_of_openai": {"visual.class_embedding": ONE, "context_length": ONE},
    "regionclip": {"backbone.conv1.weight": ONE},
}  # fmt: skip
# Inferred from the shapes of tensors; heads of 80 and 96 channels, like those of a ViT-H.
INFERRED = CLIPConfig(
    ViTConfig(patch_size=14, layers=3, width=320, heads=5),
    TextConfig(vocab_size=49408, context_length=64, width=192, heads=3, layers=2),
    Preprocessing(70),
    embed_dim=24,
)
RESNET = dataclasses.replace(
    INFERRED, image=ResNetConfig((1, 2, 1, 1), 8, 4), preprocessing=Preprocessing(64)
)
HUGGINGFACE = {
    "model_type": "clip",
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 3,
        "num_attention_heads": 4, "patch_size": 14, "image_size": 75,
        "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64, "hidden_act": "gelu_new",
    },
}  # fmt: skip
PREPROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2}
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {
            "layers": 3, "width": 320, "head_width": 80, "patch_size": 14, "image_size": 75,
            "norm_kwargs": {"eps": 1e-6}, "patch_dropout": 0.5,
        },
        "text_cfg": {
            "context_length": 64, "vocab_size": 49408, "width": 192, "heads": 2, "layers": 2,
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear"
    },
}  # fmt: skip


def expected(position_resize):
    return dataclasses.replace(
        INFERRED,
        image=dataclasses.replace(
            INFERRED.image, activation="gelu", eps=1e-6, heads=4, position_resize=position_resize
        ),
        text=dataclasses.replace(INFERRED.text, activation="gelu_tanh", heads=2),
        preprocessing=Preprocessing(70, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), "bilinear_round"),
    )


def changed(content: dict, key: str, value) -> dict:
    """Return a copy with the value of a key, whose parts have dots between."""
    content = copy.deepcopy(content)
    *parts, last = key.split(".")
    inner = content
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return content


@pytest.fixture
def complete(tmp_path):
    """``complete(files, names, checkpoint)``: what ``complete_config`` returns."""

    def complete(
        files: dict,
        names="open_clip",
        checkpoint="model.pth",
        config=INFERRED,
        choice=NO_CHOICE,
        **parts,
    ):
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text)
        parts = {"image": True, "text": True} | parts
        return complete_config(config, tmp_path / checkpoint, NAMES[names], choice, **parts)

    return complete


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("preprocessor", ["preprocessor_config.json", "processor_config.json"])
def test_hugging_face_files_are_honoured_for_every_ending(complete, ending, preprocessor):
    pixels = PREPROCESSOR if preprocessor[:3] == "pre" else {"image_processor": PREPROCESSOR}
    files = {
        "config.json": HUGGINGFACE,
        preprocessor: pixels,
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"},
    }
    completed = complete(files, "huggingface", f"model{ending}")
    assert completed[:2] == (expected("bicubic"), "CLIPTokenizer")


@pytest.mark.parametrize("names", ["open_clip", "openai", "regionclip", "huggingface"])
@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".safetensors"])
def test_an_open_clip_file_is_honoured_for_every_ending(complete, ending, names):
    completed = complete({"open_clip_config.json": OPEN_CLIP}, names, f"m{ending}")
    assert completed[:2] == (expected("bicubic_antialiased"), None)
    assert "open_clip_config.json" in completed.notes[0]


def test_quick_gelu_and_missing_keys_have_the_values_of_the_libraries(complete):
    config = CLIPConfig(
        ViTConfig(32, 12, 768, 3), TextConfig(49408, 77, 512, 3, 12), Preprocessing(224), 512
    )
    right = dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, heads=12, position_resize="bicubic"),
        text=dataclasses.replace(config.text, heads=8),
        preprocessing=Preprocessing(224, resize="bicubic_truncate"),
    )
    files = {"config.json": {"model_type": "clip"}, "preprocessor_config.json": {}}
    assert complete(files, "huggingface", config=config)[0] == right
    model = {"embed_dim": 512, "vision_cfg": {"patch_size": 32}, "text_cfg": {}, "quick_gelu": True}
    image = dataclasses.replace(right.image, position_resize="bicubic_antialiased")
    files = {"open_clip_config.json": {"model_cfg": model}}
    found = complete(files, config=config)[0]
    assert found == dataclasses.replace(right, image=image)


def test_a_resnet_has_the_heads_of_its_attention_pool(complete):
    cfg = {"layers": [1, 2, 1, 1], "width": 8, "head_width": 32, "image_size": 64}
    files = {"open_clip_config.json": changed(OPEN_CLIP, "model_cfg.vision_cfg", cfg)}
    image = complete(files, config=RESNET).config.image
    assert image == ResNetConfig((1, 2, 1, 1), 8, heads=8)


def test_each_naming_scheme_has_a_separate_configuration_file(complete):
    """Some repositories hold both files and a checkpoint of each scheme."""
    both = {
        "config.json": HUGGINGFACE,
        "preprocessor_config.json": PREPROCESSOR,
        "open_clip_config.json": changed(OPEN_CLIP, "model_cfg.quick_gelu", True),
    }
    found = {names: complete(both, names).config.image.activation for names in NAMES}
    assert found.pop("huggingface") == "gelu" and set(found.values()) == {"quick_gelu"}


def test_only_the_own_towers_of_a_file_take_its_numbers(complete):
    """The text tower of another checkpoint may come with an image tower of other sizes."""
    files = {"open_clip_config.json": changed(OPEN_CLIP, "model_cfg.vision_cfg.width", 640)}
    config = complete(files, image=False).config
    assert config == dataclasses.replace(INFERRED, text=expected("bicubic").text)
    files = {"open_clip_config.json": changed(OPEN_CLIP, "model_cfg.text_cfg.width", 640)}
    config = complete(files, text=False).config
    assert config == dataclasses.replace(expected("bicubic_antialiased"), text=INFERRED.text)


_VISION, _TEXT = "vision_config", "text_config"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "siglip", "model_type: expected 'clip', found 'siglip'"),
        ("projection_dim", 32, "embedding width: expected 24, as in the tensors, found 32"),
        (f"{_VISION}.hidden_size", 384, "image tower: width: expected 320"),
        (f"{_VISION}.num_hidden_layers", 2, "image tower: layers: expected 3"),
        (f"{_VISION}.image_size", 224, "cells of a side of 224 pixels: expected 5"),
        (f"{_VISION}.intermediate_size", 1024, "MLP: expected 1280"),
        (f"{_VISION}.num_attention_heads", "4", "num_attention_heads: expected a positive whole"),
        (f"{_VISION}.layer_norm_eps", None, "layer_norm_eps: expected a positive number"),
        (f"{_VISION}.hidden_act", "relu", r"vision_config\.hidden_act: .*found 'relu'"),
        (f"{_VISION}.hidden_act", ["gelu"], r"vision_config\.hidden_act: .*found \['gelu'\]"),
        (f"{_TEXT}.vocab_size", 1000, "text tower: vocab_size: expected 49408"),
        (f"{_TEXT}.eos_token_id", 5, r"text_config\.eos_token_id: .*49407.*found 5"),
        (_TEXT, [], r"text_config: expected a JSON object, found \[\]"),
    ],
)
def test_wrong_numbers_of_hugging_face_are_refused(complete, key, value, message):
    files = {
        "config.json": changed(HUGGINGFACE, key, value),
        "preprocessor_config.json": PREPROCESSOR,
    }
    with pytest.raises(CheckpointMismatch, match=rf"config\.json: .*{message}"):
        complete(files, "huggingface")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_mean": [0.5, 0.5]}, r"image_mean: expected three numbers"),
        ({"image_mean": 0.5}, r"image_mean: expected three numbers"),
        ({"resample": 0}, r"resample: expected one of \[2, 3\], found 0"),
        ({"rescale_factor": 1.0}, "rescale_factor: expected 1/255"),
        ({"do_rescale": False}, "rescale_factor: expected 1/255"),
        ("null", "expected a JSON object, found null"),
        (None, "expected preprocessor_config.json or processor_config.json"),
    ],
)
def test_a_wrong_or_missing_preprocessor_is_refused(complete, content, message):
    files = {"config.json": HUGGINGFACE}
    files |= {} if content is None else {"preprocessor_config.json": content}
    with pytest.raises(CheckpointMismatch, match=message):
        complete(files, "huggingface")


def test_pixels_that_are_not_normalised_have_no_mean(complete):
    pixels = PREPROCESSOR | {"do_normalize": False}
    files = {"config.json": HUGGINGFACE, "preprocessor_config.json": pixels}
    found = complete(files, "huggingface").config.preprocessing
    assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))


_IMAGE_CFG, _TEXT_CFG = "model_cfg.vision_cfg", "model_cfg.text_cfg"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_cfg", None, "model_cfg: expected a JSON object, found null"),
        (_IMAGE_CFG, None, "vision_cfg: expected a JSON object, found null"),
        ("model_cfg.multimodal_cfg", {"width": 1}, "multimodal_cfg: expected no such key"),
        (f"{_IMAGE_CFG}.timm_model_name", "vit_tiny", "timm_model_name: expected one of"),
        (f"{_IMAGE_CFG}.no_ln_pre", True, "no_ln_pre: expected no such key"),
        (f"{_IMAGE_CFG}.ls_init_value", 1e-4, "ls_init_value: expected no such key"),
        (f"{_IMAGE_CFG}.pool_type", "avg", "pool_type: expected 'tok', found 'avg'"),
        # open_clip pools nothing then.
        (f"{_IMAGE_CFG}.pool_type", None, "pool_type: expected 'tok', found None"),
        (f"{_IMAGE_CFG}.final_ln_after_pool", True, "final_ln_after_pool: expected no such key"),
        (f"{_IMAGE_CFG}.attentional_pool", True, "attentional_pool: expected no such key"),
        (f"{_IMAGE_CFG}.qk_norm", True, "qk_norm: expected no such key"),
        (f"{_TEXT_CFG}.pool_type", "eos", "pool_type: expected 'argmax', found 'eos'"),
        (f"{_TEXT_CFG}.proj_bias", True, "proj_bias: expected no such key"),
        (f"{_TEXT_CFG}.hf_model_name", "roberta-base", "hf_model_name: expected no such key"),
        (f"{_IMAGE_CFG}.mlp_ratio", 4.3637, "image tower: hidden channels of the MLP"),
        (f"{_IMAGE_CFG}.head_width", 0, "head_width: expected a positive whole"),
        (f"{_TEXT_CFG}.no_causal_mask", True, "no_causal_mask: expected no such key"),
        (f"{_TEXT_CFG}.act_kwargs", {"approximate": "x"}, "approximate: expected one of"),
        (f"{_TEXT_CFG}.layers", 12, "text tower: layers: expected 2"),
        ("preprocess_cfg.mean", ["a"], "preprocess_cfg.mean: expected three numbers"),
        ("preprocess_cfg.interpolation", "nearest", "interpolation: expected one of"),
    ],
)
def test_wrong_numbers_of_open_clip_are_refused(complete, key, value, message):
    with pytest.raises(CheckpointMismatch, match=rf"open_clip_config\.json: .*{message}"):
        complete({"open_clip_config.json": changed(OPEN_CLIP, key, value)})


@pytest.mark.parametrize("text", ["null", "[1, 2]", '{"model_cfg": ', "", "7"])
@pytest.mark.parametrize("name", ["open_clip_config.json", "config.json"])
def test_an_unreadable_configuration_is_a_one_line_error(complete, name, text):
    with pytest.raises(CheckpointMismatch, match=rf"{name}: expected .*copy the file") as error:
        complete({name: text}, checkpoint="model.pt")
    assert "\n" not in str(error.value)


@pytest.mark.property
@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("open_clip_config.json", "open_clip"),
        ("config.json", "huggingface"),
        ("preprocessor_config.json", "huggingface"),
        ("tokenizer_config.json", "huggingface"),
    ],
)
def test_a_value_of_another_type_is_accepted_or_a_one_line_error(complete, name, names):
    files = {
        "open_clip_config.json": OPEN_CLIP,
        "config.json": HUGGINGFACE,
        "preprocessor_config.json": PREPROCESSOR,
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"},
    }
    complete(files, names)
    num_refused = 0
    for text in texts_with_another_value(files[name]):
        try:
            completed = complete({name: text}, names)
            require_tokenizer(completed.config.text, Path(name), completed.tokenizer)
        except CheckpointMismatch as error:
            num_refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert num_refused > 10


def test_a_byte_order_mark_is_skipped(complete):
    text = "\ufeff" + json.dumps(OPEN_CLIP)
    assert complete({"open_clip_config.json": text}).config == expected("bicubic_antialiased")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{}", "'utf-8' codec"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "deeper than 32 levels"),
        (b'{"a": Infinity}', "Infinity is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs more than once"),
        (b" " * (2**22 + 1), "at most"),
    ],
)
def test_other_text_than_plain_json_is_a_one_line_error(complete, tmp_path, content, message):
    (tmp_path / "open_clip_config.json").write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=rf"config\.json.* expected .*{message}") as error:
        complete({})
    assert "\n" not in str(error.value)


def test_a_config_of_another_program_is_not_read(complete):
    completed = complete({"config.json": {"learning_rate": 1}}, "resnet", config=RESNET)
    assert completed.config == RESNET and "no open_clip_config.json" in completed.notes[0]


@pytest.mark.parametrize(
    ("names", "checkpoint", "config", "is_open"),
    [
        ("huggingface", "model.pth", INFERRED, True),
        ("open_clip", "model.pt", INFERRED, True),
        ("open_clip", "model.safetensors", INFERRED, True),
        ("half_of_openai", "model.pt", INFERRED, True),
        ("openai", "model.safetensors", INFERRED, False),
        ("regionclip", "model.safetensors", INFERRED, False),
        ("resnet", "model.pth", RESNET, False),
        ("resnet", "model.safetensors", RESNET, True),
        # Its text tower, for an image tower from another file.
        ("open_clip", "model.pth", RESNET, True),
    ],
)
def test_openai_numbers_are_assumed_only_where_they_must_be_right(
    complete, names, checkpoint, config, is_open
):
    if is_open:
        with pytest.raises(CheckpointMismatch, match=rf"{checkpoint}: .*activation.*no preset has"):
            complete({}, names, checkpoint, config)
    else:
        completed = complete({}, names, checkpoint, config)
        assert completed.config == config and not completed.chosen
        assert len(completed.notes) == (names == "resnet")
        assert all("assumed OpenAI's quick GELU" in note for note in completed.notes)


def inferred(preset: str) -> CLIPConfig:
    """Return what the tensors of a preset tell: OpenAI's numbers but for the sizes."""
    config = PRESETS[preset]
    parts = {"heads": 1, "activation": "quick_gelu", "eps": 0.1}
    return dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, **parts),
        text=dataclasses.replace(config.text, **parts),
        preprocessing=Preprocessing(config.preprocessing.resolution),
    )


@pytest.mark.parametrize("names", ["open_clip", "huggingface"])
@pytest.mark.parametrize("preset", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_chosen_preset_states_every_number(complete, preset, names):
    completed = complete({}, names, config=inferred(preset), choice=Choice(preset))
    assert completed.config == PRESETS[preset] and completed.chosen
    assert f"--preset {preset}" in completed.notes[0]


def test_a_preset_of_other_sizes_is_refused_with_both_and_with_those_that_fit(complete):
    message = (
        r"model\.pth: expected the sizes of --preset ViT-L-14, .*image\.width: 1024 in the preset, "
        r"768 in the file.*choose --preset of ViT-B/32 \(quick_gelu\), ViT-B-32 \(gelu\), "
        r"ViT-B-32-quickgelu \(quick_gelu\), or --activation"
    )
    with pytest.raises(CheckpointMismatch, match=message) as error:
        complete({}, config=inferred("ViT-B-32"), choice=Choice("ViT-L-14"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    with pytest.raises(CheckpointMismatch, match="image: ResNetConfig in the preset, ViTConfig in"):
        complete({}, config=inferred("ViT-B-32"), choice=Choice("RN50"))
    with pytest.raises(ConfigError, match="--preset: 'ViT-Z' is none of .*ViT-B-32"):
        complete({}, config=inferred("ViT-B-32"), choice=Choice("ViT-Z"))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_a_chosen_activation_takes_the_rest_from_the_presets_of_the_sizes(complete, activation):
    config = inferred("ViT-B-32-256")
    completed = complete({}, config=config, choice=Choice(activation=activation)).config
    expected = PRESETS["ViT-B-32-256"]
    for tower in ("image", "text"):
        right = dataclasses.replace(getattr(expected, tower), activation=activation)
        assert getattr(completed, tower) == right
    assert completed.preprocessing == Preprocessing(256)


def test_an_activation_is_not_enough_if_presets_disagree_on_pixels(complete):
    config = inferred("ViT-L-14")
    completed = complete({}, config=config, choice=Choice(activation="quick_gelu"))
    assert completed.config == PRESETS["ViT-L/14"]
    message = "gelu leaves ViT-L-14 or ViT-L-14-laion2b_s32b_b82k open; .*choose --preset of"
    with pytest.raises(CheckpointMismatch, match=message):
        complete({}, config=config, choice=Choice(activation="gelu"))
    # The mean is that of the image tower.
    completed = complete({}, config=config, choice=Choice(activation="gelu"), image=False)
    assert completed.config == dataclasses.replace(config, text=PRESETS["ViT-L-14"].text)


def test_no_activation_is_enough_for_sizes_of_no_preset(complete):
    with pytest.raises(CheckpointMismatch, match="no preset has the sizes of this file"):
        complete({}, choice=Choice(activation="gelu"))


@pytest.mark.parametrize("num_ids", [1000, 60_000])
def test_a_vocabulary_that_is_not_clips_is_refused_with_its_tokenizer(complete, tmp_path, num_ids):
    text = dataclasses.replace(INFERRED.text, vocab_size=num_ids)
    content = changed(OPEN_CLIP, f"{_TEXT_CFG}.vocab_size", num_ids)
    content = changed(content, f"{_TEXT_CFG}.hf_tokenizer_name", "bert-base-uncased")
    files = {"open_clip_config.json": content}
    completed = complete(files, config=dataclasses.replace(INFERRED, text=text))
    with pytest.raises(CheckpointMismatch, match=f"found one of {num_ids}, of 'bert-base-uncased'"):
        require_tokenizer(completed.config.text, tmp_path, completed.tokenizer)


@pytest.mark.parametrize(("length", "message"), [(77, ""), (12, ""), (2, "at least 3 positions")])
def test_any_context_length_that_the_tokenizer_makes_is_converted(tmp_path, length, message):
    text = dataclasses.replace(INFERRED.text, context_length=length)
    if message:
        with pytest.raises(CheckpointMismatch, match=message):
            require_tokenizer(text, tmp_path, None)
    else:
        require_tokenizer(text, tmp_path, None)
