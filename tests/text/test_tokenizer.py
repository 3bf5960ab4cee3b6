import pytest

from regionclip_jax.models.presets import PRESETS
from regionclip_jax.text.tokenizer import TOKENIZERS, tokenizer_named


def test_the_tokenizer_of_every_preset_exists_and_is_built_once():
    assert {preset.text.tokenizer for preset in PRESETS.values()} <= set(TOKENIZERS)
    assert tokenizer_named("clip") is tokenizer_named("clip")


def test_an_unknown_tokenizer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['clip', 'siglip', 'siglip2'\], found 'gemma'"):
        tokenizer_named("gemma")
