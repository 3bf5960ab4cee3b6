"""Gradients of the steps in float64 against the float32 gradients of the reference.

The test runs this file as a script in a separate process, where ``jnp.float32`` is replaced before
the import of the package. RN50's gradients pass some twenty layers of ReLUs. For an input near
zero, two correct float32 programs may differ.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parity
def test_in_double_precision_rn50s_gradients_equal_the_references(large_golden_folder):
    """Measured: the reference's fp32 is 1.2e-4 (layer4) and 3.2e-4 (layer2) from our float64,
    1.9e-6 in the attention pool. Our fp32 is as near in all stored tensors but the first of layer2
    (7e-3), whose gradient comes through a convolution in which single channels of 128 differ by up
    to 3e-2 while the median is 1e-4.
    """
    errors = in_double_precision("pretrain", large_golden_folder)
    assert len(errors) == 6
    for name, error in errors.items():
        assert error < (1e-5 if "attnpool" in name else 5e-4), (name, error)


@pytest.mark.slow
@pytest.mark.parity
def test_in_double_precision_rn50s_finetuning_equals_the_references(large_golden_folder):
    """Losses, logits, all norms and 98% of every gradient within 1e-4.

    Measured of the one stored gradient deep in the tower, layer4's first 1x1 kernel: the median is
    5e-6, 36 of 4,096 elements differ by more than 1e-4 and at most by 1.2e-3, several of them in
    the same few output channels of 512: an input of a ReLU that is zero within rounding. Our fp32
    is as near. Norms differ by at most 8e-5, losses by 1e-7.
    """
    errors = in_double_precision("finetune", large_golden_folder)
    assert sum("98% of" in name for name in errors) >= 2
    for name, error in errors.items():
        deep = "gradient" in name and "backbone.layer" in name
        assert error < (2e-3 if deep else 1e-4), (name, error)


def in_double_precision(step: str, folder: Path) -> dict[str, float]:
    """Return relative errors by name."""
    environment = os.environ | {
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    done = subprocess.run(
        [sys.executable, __file__, step, str(folder)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors and all(math.isfinite(error) for error in errors.values())
    return errors


def compare_pretraining(folder: Path):
    from parity import pretraining
    from parity.golden import load

    arrays = load("pretrain_rn50", folder)
    step = pretraining.step_of(
        "RN50", arrays, "rn50_pretrain", folder, compute_dtype=jnp.float64, dtype=jnp.float64
    )
    labels, _ = pretraining.labels_and_embeddings(step)
    gradients, _ = pretraining.gradient_function(step, labels)(pretraining.LOSSES)
    assert all(gradient.dtype == np.float64 for gradient in gradients.values())
    return pretraining.compare_gradients(arrays, gradients, tolerance=5e-4)


def compare_finetuning(folder: Path):
    from parity import finetuning

    return finetuning.compare_finetuning_of_rn50(folder, dtype=jnp.float64)


if __name__ == "__main__":
    jnp.float32 = jnp.float64
    compare = {"pretrain": compare_pretraining, "finetune": compare_finetuning}[sys.argv[1]]
    print(json.dumps({c.name: float(c.error) for c in compare(Path(sys.argv[2]))}))
