import dataclasses
import json

import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch, ModelCard, from_card
from regionclip_jax.models.presets import PRESETS


@pytest.mark.parametrize("name", ["RN50x4", "ViT-B/32"])
def test_a_card_survives_json(name):
    card = ModelCard(PRESETS[name], {"file": "a.pt", "sha256": "00"})
    content = json.loads(card.to_json())
    assert content["preset"] == name and content["format"] == 1
    assert ModelCard.from_json(card.to_json()) == card


def test_a_model_of_no_preset_says_so():
    config = dataclasses.replace(PRESETS["RN50"], vocab_size=7)
    card = ModelCard(config, {"run": "mine"})
    assert card.preset is None
    assert ModelCard.from_json(card.to_json()) == card


@pytest.mark.parametrize("text", ["not json", "[]", '{"format": 2}', '{"format": 1}'])
def test_other_cards_are_refused_with_a_remedy(text):
    with pytest.raises(CheckpointMismatch, match=r"somewhere/card\.json.*again"):
        ModelCard.from_json(text, "somewhere/card.json")


def test_a_card_with_other_fields_names_them():
    content = json.loads(ModelCard(PRESETS["RN50"], {}).to_json())
    content["architecture"]["num_registers"] = 4
    with pytest.raises(CheckpointMismatch, match="num_registers"):
        ModelCard.from_json(json.dumps(content))


def test_a_field_that_is_younger_than_a_card_has_its_default():
    @dataclasses.dataclass(frozen=True)
    class Grown:
        width: int
        activation: str = "quick_gelu"

    card = {"format": 1, "architecture": {"width": 3}, "source": {"run": "old"}}
    found, source, _ = from_card(json.dumps(card), "model.json", Grown)
    assert found == Grown(3, "quick_gelu") and source == {"run": "old"}
    card["architecture"] = {"activation": "gelu"}
    with pytest.raises(
        CheckpointMismatch, match=r"fields \['width'\] and perhaps \['activation'\]"
    ):
        from_card(json.dumps(card), "model.json", Grown)
