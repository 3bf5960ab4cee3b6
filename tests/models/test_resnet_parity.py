"""The ResNet tower of CLIP against the reference, stage by stage."""

import pytest

from marks import on_accelerators
from parity import towers
from parity.comparison import assert_equal_to_reference

pytestmark = pytest.mark.parity


@on_accelerators
def test_normalised_pixels_equal_the_references():
    """Measured: 2.3e-7."""
    assert_equal_to_reference(towers.compare_pixels())


@on_accelerators
def test_every_stage_of_the_tiny_tower_equals_the_references():
    """Measured: 2.9e-7 to 4.9e-7."""
    assert_equal_to_reference(towers.compare_stages())


@on_accelerators
def test_every_stage_on_a_small_canvas_equals_the_references():
    """Measured: 2.4e-7 to 6.2e-7."""
    assert_equal_to_reference(towers.compare_small_stages())


@on_accelerators
def test_embeddings_of_the_image_and_of_regions_equal_the_references():
    """Measured: 8.8e-7, crops 4.9e-7, regions 1.0e-6."""
    assert_equal_to_reference(towers.compare_embeddings())


@pytest.mark.slow
@pytest.mark.parametrize("preset,arch", [("RN50", "rn50"), ("RN50x4", "rn50x4")])
def test_towers_of_full_size_equal_the_references(large_golden_folder, preset, arch):
    """Measured: RN50 at most 1.8e-6, RN50x4 at most 2.1e-6, both at the regions."""
    assert_equal_to_reference(towers.compare_full_size(preset, arch, large_golden_folder))
