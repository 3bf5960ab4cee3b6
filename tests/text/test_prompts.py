import pathlib

import numpy as np
import pytest

from regionclip_jax.text.prompts import TEMPLATES, fill_template, prepare_class_name, prompts_for
from regionclip_jax.text.tokenizer import tokenizer_named

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "prompts.npz"


@pytest.mark.parity
def test_templates_and_their_order_equal_the_reference():
    assert TEMPLATES == tuple(np.load(GOLDEN)["templates"].tolist())


@pytest.mark.parity
def test_tokens_of_prompts_equal_the_reference():
    golden = np.load(GOLDEN)
    for name, tokens in zip(golden["class_names"].tolist(), golden["tokens"], strict=True):
        np.testing.assert_array_equal(tokenizer_named("clip")(prompts_for(name), 77), tokens)


def test_commas_of_a_name_are_removed_and_a_plus_becomes_a_blank():
    assert fill_template("a photo of a {}.", "a,b+c") == "a photo of a ab c."


def test_underscores_and_brackets_of_a_class_name_are_removed():
    assert prepare_class_name("bow_(weapon)") == "bow weapon"
