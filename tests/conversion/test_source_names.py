import numpy as np
import pytest

from checkpoints import to_huggingface
from regionclip_jax.conversion import huggingface_keys, regionclip_keys

ONE = np.ones(1, np.float32)


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
