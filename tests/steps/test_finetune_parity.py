"""Detector training against the reference: matching, deltas, losses and gradients.

The losses of the region proposal network and the mask head have no golden arrays. tests/losses
compares them with NumPy formulas.
"""

import pytest

from marks import on_accelerators
from parity import finetuning, losses
from parity.comparison import assert_equal_to_reference
from parity.golden import stored

pytestmark = pytest.mark.parity


@on_accelerators
@pytest.mark.parametrize("variant", finetuning.VARIANTS)
def test_matching_gives_every_sampled_box_the_references_class_and_target(variant):
    """Exact: classes, and targets of positives, bit for bit."""
    positive = finetuning.stored_samples(stored("finetune_tiny"), variant).is_positive
    assert positive.any(1).all() and not positive.all(1).any()
    assert_equal_to_reference(finetuning.compare_matching(variant))


@on_accelerators
def test_the_numbers_of_positives_and_background_equal_the_references():
    """The random draws differ; counts, order and matching must be equal."""
    assert_equal_to_reference(finetuning.compare_sampling())


@on_accelerators
@pytest.mark.parametrize("variant", finetuning.VARIANTS)
def test_losses_of_stored_logits_and_deltas_equal_the_references(variant):
    """Measured: at most 2e-7."""
    assert_equal_to_reference(losses.compare_box_head_losses(variant))


@on_accelerators
def test_a_tiny_step_equals_the_references():
    """Two images, 48 stored samples each, both forms of the classification loss."""
    assert_equal_to_reference(finetuning.compare_tiny_step())


@pytest.mark.slow
def test_a_step_of_rn50_equals_the_references(large_golden_folder):
    """Compare the step of RN50 at temperature 0.01.

    Deep gradients pass ReLUs with inputs near zero, where two correct float32 programs may differ.
    test_float64.py compares both in float64.
    """
    assert_equal_to_reference(finetuning.compare_finetuning_of_rn50(large_golden_folder))
