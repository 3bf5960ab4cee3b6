import numpy as np
import pytest

from regionclip_jax.reporting import tables

MODELS = {
    "teacher": {"AP50_novel": 31.44, "AP50_base": None},
    "student": {"AP50_novel": 35.56, "AP50_base": 50.0, "top1": 7.0},
}


def test_two_models_are_listed_side_by_side_with_their_difference():
    assert tables.comparison_table(MODELS).splitlines() == [
        "            teacher  student  difference",
        "----------------------------------------",
        "AP50_novel     31.4     35.6        +4.2",
        "AP50_base         -     50.0           -",
        "top1              -      7.0           -",
    ]


def test_one_model_has_no_difference():
    assert "difference" not in tables.comparison_table({"only": {"AP": 1.0}})


def test_no_models_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        tables.comparison_table({})


def test_settings_are_one_line_each():
    text = tables.settings_text({"data": {"batch": 8, "mix": [1, 2]}, "name": "tiny", "x": {}})
    assert text == "data:\n  batch: 8\n  mix: [1, 2]\nname: tiny\nx: {}"


def test_parameters_are_listed_with_shape_and_total():
    text = tables.parameters_text({"conv": {"kernel": np.zeros((3, 4), np.float32)}})
    assert "conv/kernel" in text and "(3, 4)" in text and "12" in text
    assert tables.as_markdown("a") == "```\na\n```"
