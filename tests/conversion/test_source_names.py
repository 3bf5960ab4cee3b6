import numpy as np
import pytest

from regionclip_jax.conversion import huggingface_keys, regionclip_keys

ONE = np.ones(1, np.float32)


def to_huggingface(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return OpenAI's ViT tensors by Hugging Face names, without the table of the reader."""
    renames = [
        ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
        ("transformer.resblocks.", "text_model.encoder.layers."),
        ("visual.conv1", "vision_model.embeddings.patch_embedding"),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("token_embedding", "text_model.embeddings.token_embedding"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final", "text_model.final_layer_norm"),
    ]
    inner = [
        (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."), (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."), (".attn.", ".self_attn."),
    ]  # fmt: skip
    result = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    for key, value in tensors.items():
        if key in ("visual.proj", "text_projection"):
            name = "visual_projection" if key == "visual.proj" else "text_projection"
            result[f"{name}.weight"] = value.T
            continue
        for old, new in renames:
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        for old, new in inner:
            key = key.replace(old, new)
        if "in_proj_" in key:
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                result[key.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            result[key] = value
    return result


@pytest.mark.parity
def test_hugging_face_names_are_converted_to_openai_names(make_state_dict):
    expected = make_state_dict("vit_tiny")
    given = to_huggingface(expected)
    assert huggingface_keys.is_huggingface(given)
    renamed, names = huggingface_keys.to_openai(given)
    assert renamed.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(renamed[key], expected[key])
    used = {name for sources in names.values() for name in sources}
    assert given.keys() - used == {"text_model.embeddings.position_ids"}


def test_a_block_without_value_weights_has_no_packed_tensor():
    block = "text_model.encoder.layers.0.self_attn"
    given = {f"{block}.{letter}_proj.bias": ONE for letter in "qk"}
    assert huggingface_keys.to_openai(given) == ({}, {})


def test_prefixes_of_distributed_wrappers_are_dropped_only_when_common():
    strip = regionclip_keys.strip_common_prefix
    assert list(strip({"module.module.a": ONE, "module.module.b": ONE})) == ["a", "b"]
    assert list(strip({"module.a": ONE, "b": ONE})) == ["module.a", "b"]


@pytest.mark.parametrize(("tower", "value"), [("student", 1), ("teacher", 2)])
def test_student_and_teacher_are_distinguished(tower, value):
    given = {
        "backbone.conv1.weight": ONE,
        "teacher_backbone.conv1.weight": ONE * 2,
        "offline_backbone.conv1.weight": ONE * 3,
        "lang_encoder.token_embedding.weight": ONE * 4,
        "lang_encoder.transformer.resblocks.0.ln_1.bias": ONE * 5,
        "roi_heads.box_predictor.cls_score.weight": ONE,
    }
    renamed, names = regionclip_keys.to_openai(given, tower)
    assert {key: int(array[0]) for key, array in renamed.items()} == {
        "visual.conv1.weight": value,
        "token_embedding.weight": 4,
        "transformer.resblocks.0.ln_1.bias": 5,
    }
    assert names["token_embedding.weight"] == ("lang_encoder.token_embedding.weight",)


def test_a_second_text_tower_is_not_read():
    given = {
        "lang_encoder.token_embedding.weight": ONE,
        "token_embedding.weight": ONE,
        "transformer.resblocks.0.ln_1.bias": ONE,
        "visual.conv1.weight": ONE,
    }
    renamed, _ = regionclip_keys.to_openai(given, "student")
    assert set(renamed) == {"token_embedding.weight", "visual.conv1.weight"}


def test_open_clip_names_with_a_text_prefix_are_read():
    given = {
        "text.token_embedding.weight": ONE,
        "text.text_projection": ONE,
        "text.attn_mask": ONE,
        "logit_scale": ONE,
        "visual.transformer.resblocks.0.ln_1.bias": ONE,
    }
    renamed, _ = regionclip_keys.to_openai(given, "student")
    assert set(renamed) == {
        "token_embedding.weight",
        "text_projection",
        "logit_scale",
        "visual.transformer.resblocks.0.ln_1.bias",
    }
