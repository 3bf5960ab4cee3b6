import dataclasses
import json

import pytest

from json_changes import texts_with_another_value
from regionclip_jax.artifacts.card_fields import require_plausible
from regionclip_jax.artifacts.detector_heads import HeadsCard, HeadsConfig
from regionclip_jax.artifacts.model_card import (
    CheckpointMismatch,
    LocalizerCard,
    ModelCard,
    part_from_card,
)
from regionclip_jax.artifacts.model_checkpoint import load_card
from regionclip_jax.models.presets import LOCALIZER_PRESETS, PRESETS
from regionclip_jax.models.vision_transformer import ViTConfig
from regionclip_jax.models.vit_pyramid import PyramidConfig
from regionclip_jax.structures import Preprocessing


@pytest.mark.parametrize("name", ["RN50x4", "ViT-B/32"])
def test_a_card_is_unchanged_by_json(name):
    card = ModelCard(PRESETS[name], {"file": "a.pt", "sha256": "00"})
    content = json.loads(card.to_json())
    assert content["preset"] == name and content["format"] == 2
    assert ModelCard.from_json(card.to_json()) == card


def test_a_card_states_the_rule_of_regions_and_has_its_preset():
    config = dataclasses.replace(PRESETS["ViT-B/32"], normalize_map=True)
    card = ModelCard(config, {"run": "distill"})
    assert card.preset == "ViT-B/32" and ModelCard.from_json(card.to_json()) == card
    content = json.loads(ModelCard(PRESETS["RN50"], {}).to_json())
    content["architecture"]["normalize_map"] = True
    with pytest.raises(CheckpointMismatch, match="normalize_map: expected false .*'resnet'"):
        ModelCard.from_json(json.dumps(content))


def test_the_card_of_a_model_without_a_preset_names_none():
    config = dataclasses.replace(PRESETS["RN50"], embed_dim=7)
    card = ModelCard(config, {"run": "mine"})
    assert card.preset is None
    assert ModelCard.from_json(card.to_json()) == card


@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"format": 3}', '{"format": 2}', '{"format": 1}']
)
def test_other_cards_are_refused_with_a_remedy(text):
    with pytest.raises(CheckpointMismatch, match=r"somewhere/card\.json.*again"):
        ModelCard.from_json(text, "somewhere/card.json")


@pytest.mark.parametrize("part", [None, "image", "text", "preprocessing"])
def test_a_card_with_other_fields_names_them(part):
    content = json.loads(ModelCard(PRESETS["RN50"], {}).to_json())
    architecture = content["architecture"]
    (architecture if part is None else architecture[part])["num_registers"] = 4
    with pytest.raises(CheckpointMismatch, match=f"{part or 'architecture'}.*num_registers"):
        ModelCard.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [("image", "kind", "swin"), ("text", "kind", None), ("image", "activation", "relu")],
)
def test_a_card_with_another_choice_names_the_known_ones(part, field, value):
    content = json.loads(ModelCard(PRESETS["ViT-B/32"], {}).to_json())
    content["architecture"][part][field] = value
    with pytest.raises(CheckpointMismatch, match=rf"{part}\.{field}: expected one of .*{value!r}"):
        ModelCard.from_json(json.dumps(content))


def test_missing_fields_of_a_card_have_the_values_of_openai():
    content = json.loads(ModelCard(PRESETS["ViT-B/32"], {}).to_json())
    architecture = content["architecture"]
    del architecture["logit_bias"], architecture["image"]["eps"], architecture["text"]["tokenizer"]
    architecture["preprocessing"] = {"resolution": 224}
    assert ModelCard.from_json(json.dumps(content)).architecture == PRESETS["ViT-B/32"]


def test_every_number_of_an_architecture_is_unchanged_by_json():
    preset = PRESETS["ViT-B/32"]
    config = dataclasses.replace(
        preset,
        image=dataclasses.replace(
            preset.image, heads=8, activation="gelu_tanh", eps=1e-6, mlp_width=2730
        ),
        text=dataclasses.replace(preset.text, activation="gelu", tokenizer="other"),
        preprocessing=Preprocessing(384, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5), "bicubic_truncate"),
        logit_bias=True,
    )
    assert ModelCard.from_json(ModelCard(config, {}).to_json()).architecture == config


@pytest.mark.parametrize("name", ["RN50x4", "ViT-L/14@336", "scenes"])
def test_a_card_of_format_1_has_the_same_architecture(name):
    config = PRESETS[name]
    image, text, is_vit = config.image, config.text, isinstance(config.image, ViTConfig)
    flat = {
        "image_resolution": config.preprocessing.resolution,
        "vision_layers": image.layers if is_vit else list(image.layers),
        "vision_width": image.width,
        "vision_patch_size": image.patch_size if is_vit else None,
        "vision_heads": image.heads,
        "embed_dim": config.embed_dim,
        "vocab_size": text.vocab_size,
        "context_length": text.context_length,
        "text_width": text.width,
        "text_heads": text.heads,
        "text_layers": text.layers,
    }
    content = {"format": 1, "architecture": flat, "preset": name, "source": {"run": "old"}}
    card = ModelCard.from_json(json.dumps(content))
    assert card.architecture == config and card.source == {"run": "old"}
    del flat["text_heads"]
    with pytest.raises(CheckpointMismatch, match="expected the fields .*text_heads"):
        ModelCard.from_json(json.dumps(content))


def test_a_field_newer_than_the_card_has_its_default():
    @dataclasses.dataclass(frozen=True)
    class Grown:
        width: int
        activation: str = "quick_gelu"

    card = {"format": 1, "architecture": {"width": 3}, "source": {"run": "old"}}
    fields = part_from_card(json.dumps(card), "model.json", Grown)
    assert fields["architecture"] == Grown(3, "quick_gelu") and fields["source"] == {"run": "old"}
    card["architecture"] = {"activation": "gelu"}
    with pytest.raises(
        CheckpointMismatch, match=r"fields \['width'\] and perhaps \['activation'\]"
    ):
        part_from_card(json.dumps(card), "model.json", Grown)


CARDS = {
    "resnet": (ModelCard(PRESETS["RN50"], {"file": "a.pt", "sha256": "00"}), ModelCard.from_json),
    "vit": (ModelCard(PRESETS["ViT-B/32"], {"run": "a"}), ModelCard.from_json),
    "localizer": (LocalizerCard(LOCALIZER_PRESETS["rn50_fpn"], {}), LocalizerCard.from_json),
    "heads": (HeadsCard(HeadsConfig(64, 8), {"classes": ["cat"]}), HeadsCard.from_json),
    "pyramid": (
        HeadsCard(HeadsConfig(64, 8, PyramidConfig((3, 5, 7, 11), 768)), {}),
        HeadsCard.from_json,
    ),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_read_as_it_was_written(name):
    card, read = CARDS[name]
    assert read(card.to_json()) == card


@pytest.mark.property
@pytest.mark.parametrize("name", CARDS)
def test_a_value_of_another_type_is_accepted_or_a_one_line_error(name):
    card, read = CARDS[name]
    num_refused = 0
    for text in texts_with_another_value(json.loads(card.to_json())):
        try:
            read(text)
        except CheckpointMismatch as error:
            num_refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1200
    assert num_refused > 100


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("text", "layers", 2000),
        ("text", "layers", 0),
        ("image", "layers", [3, 4, 6, 100]),
        ("image", "width", 10**7),
        ("preprocessing", "resolution", 2**40),
        ("preprocessing", "std", [1.0, 0.0, 1.0]),
        ("text", "eps", 0.0),
        ("text", "heads", 7),
    ],
)
def test_implausible_sizes_are_refused_before_a_model_is_built(part, field, value):
    content = json.loads(ModelCard(PRESETS["RN50"], {}).to_json())
    content["architecture"][part][field] = value
    with pytest.raises(CheckpointMismatch, match=rf"architecture.*{part}.*{field}: exp|tower: exp"):
        ModelCard.from_json(json.dumps(content))


def test_the_deepest_and_widest_presets_are_plausible():
    for config in (*PRESETS.values(), *LOCALIZER_PRESETS.values()):
        require_plausible(config, "preset", "")


@pytest.mark.parametrize(("blocks", "channels"), [([], None), ([1] * 5, None), ([1, 1], 8)])
def test_a_localizer_of_other_stages_is_refused(blocks, channels):
    content = json.loads(LocalizerCard(LOCALIZER_PRESETS["rn50_fpn"], {}).to_json())
    content["architecture"] |= {"blocks": blocks, "pyramid_channels": channels}
    with pytest.raises(CheckpointMismatch, match=r"card\.json: architecture\.blocks: expected"):
        LocalizerCard.from_json(json.dumps(content))


def test_heads_cards_of_older_versions_have_no_pyramid_and_odd_ones_are_refused():
    content = json.loads(HeadsCard(HeadsConfig(64, None), {}).to_json())
    del content["architecture"]["pyramid"]
    assert HeadsCard.from_json(json.dumps(content)).architecture == HeadsConfig(64, None)
    pyramid = {"from_blocks": [3, 5, 7], "width": 768}
    for changes, key in (
        ({"architecture": content["architecture"] | {"pyramid": pyramid}}, "pyramid.from_blocks"),
        ({"source": {"classes": ["cat", 3]}}, "source.classes"),
    ):
        with pytest.raises(CheckpointMismatch, match=rf"card\.json: .*{key}: expected"):
            HeadsCard.from_json(json.dumps(content | changes))


@pytest.mark.parametrize(
    "content", [b"\xff{}", b"[" * 100_000, b'{"format": 2, "format": 2}', b" " * (2**22 + 1)]
)
def test_a_card_of_other_text_than_plain_json_is_a_one_line_error(tmp_path, content):
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=r"card\.json.* expected .*again") as error:
        load_card(tmp_path)
    assert "\n" not in str(error.value)


def test_the_byte_order_mark_of_a_card_is_skipped(tmp_path):
    card = ModelCard(PRESETS["RN50"], {"run": "mine"})
    (tmp_path / "card.json").write_text(card.to_json(), encoding="utf-8-sig")
    assert load_card(tmp_path) == card
