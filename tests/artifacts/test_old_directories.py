"""Model directories of earlier versions stay readable: one of every card format."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from regionclip_jax.artifacts.detector_heads import load_heads
from regionclip_jax.artifacts.localizer_checkpoint import load_localizer
from regionclip_jax.artifacts.model_checkpoint import flatten, load_model
from regionclip_jax.conversion.convert import convert_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Written at f2fd52e: ``pico_clip.pth`` converted, a localizer and a box head beside it."""
    folder = tmp_path_factory.mktemp("format_1")
    with tarfile.open(GOLDEN / "model_format_1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_model_of_format_1_loads_bit_for_bit(directory, tmp_path):
    variables, card = load_model(directory)
    assert card.version == "0.1.0" and card.source["file"] == "pico_clip.pth"
    convert_checkpoint(GOLDEN / "pico_clip.pth", tmp_path)
    expected = flatten(load_model(tmp_path)[0])
    found = flatten(variables)
    assert found.keys() == expected.keys()
    for path in found:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def test_a_localizer_and_heads_of_format_1_load(directory):
    variables, card = load_localizer(directory)
    assert card.architecture.pyramid_channels == 4 and card.source["classes"] == ["cat"]
    assert all(np.isfinite(leaf).all() for leaf in flatten(variables).values())
    heads, card = load_heads(directory)
    assert set(heads) == {"box_head"} and card.source["classes"] == ["cat"]
