"""The text tower and the ViT tower against those of RegionCLIP and OpenAI."""

import pytest

from marks import on_accelerators
from parity import towers
from parity.comparison import assert_equal_to_reference

pytestmark = pytest.mark.parity


@on_accelerators
def test_the_tiny_text_tower_equals_the_references():
    """Measured: 6.1e-7."""
    assert_equal_to_reference(towers.compare_text())


@on_accelerators
def test_the_tiny_vit_equals_openais():
    """Measured: 9.4e-7 for the tokens, at most 6.0e-7 for the rest."""
    assert_equal_to_reference(towers.compare_vit())


@pytest.mark.slow
def test_the_text_tower_of_rn50_equals_the_references(large_golden_folder):
    """Measured: 1.4e-6."""
    assert_equal_to_reference(towers.compare_text_of_rn50(large_golden_folder))


@pytest.mark.slow
def test_vit_b32_equals_openais(large_golden_folder):
    """Measured: at most 2.1e-6, the logits."""
    assert_equal_to_reference(towers.compare_vit_b32(large_golden_folder))
