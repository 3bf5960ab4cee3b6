"""Whose rounding is it? The steps' gradients in double precision against the reference's fp32.

Run as a script in a process of its own, because the whole package is put into double precision by
giving ``jnp.float32`` another meaning before it is imported. RN50's gradients pass some twenty
layers of ReLUs; where an input is zero within rounding, two correct fp32 programs disagree.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
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
    """Relative errors by name."""
    environment = os.environ | {"JAX_ENABLE_X64": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        [sys.executable, __file__, step, str(folder)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors and all(math.isfinite(error) for error in errors.values())
    return errors


def pretrain_errors(folder: Path) -> dict[str, float]:
    step = _load(TESTS / "steps" / "test_pretrain_parity.py")
    from regionclip_jax.artifacts.model_checkpoint import flatten
    from regionclip_jax.models.clip import CLIP
    from regionclip_jax.steps.pretrain_step import (
        Frozen,
        embed_with_student,
        label_with_teacher,
        pretrain_losses,
    )
    from regionclip_jax.steps.train_state import model_variables, split_parameters

    config, tensors = _weights("rn50_pretrain", folder)

    arrays = dict(np.load(folder / "pretrain_rn50.npz"))
    settings = step.settings_of(arrays)
    batch, regions = step.stored_batch(arrays)
    regions = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.float64), regions)
    model = CLIP(config, dtype=jnp.float64)
    student = _tower(config, tensors, "student")
    concepts = jnp.asarray(arrays["concept_emb"], jnp.float64)
    frozen = Frozen(_tower(config, tensors, "teacher"), concepts, concepts)
    params, frozen_params = split_parameters(student["params"], step.FROZEN)

    @jax.jit
    def pull(params, frozen_params, batch_stats, frozen, batch, regions):
        labels = label_with_teacher(model, frozen, batch.images, batch.sizes, regions, settings)

        def total(params):
            everything = model_variables(params, frozen_params, batch_stats)
            embeddings = embed_with_student(model, everything, batch, regions.boxes, settings)
            losses = pretrain_losses(embeddings, batch.mask, labels, frozen, settings)
            return sum(losses.values())

        return jax.grad(total)(params)

    gradients = pull(params, frozen_params, student["batch_stats"], frozen, batch, regions)
    found = dict(step.to_torch_layout(path, g) for path, g in flatten(gradients).items())
    errors = {}
    for key, expected in arrays.items():
        if key.startswith("grad:"):
            gradient = found[key.removeprefix("grad:")]
            assert gradient.dtype == np.float64
            if gradient.shape != expected.shape:
                gradient = gradient.reshape(-1)[:: gradient.size // 4096][: expected.size]
            error = np.abs(gradient - expected).max() / np.abs(expected).max()
            errors[key.removeprefix("grad:")] = float(error)
    return errors


def finetune_errors(folder: Path) -> dict[str, float]:
    step = _load(TESTS / "steps" / "test_finetune_parity.py")
    make_tensor = _load(TESTS / "golden" / "make_weights.py").make_tensor
    config, tensors = _weights("rn50_finetune", folder)
    embeddings, head = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64), step.heads_of("rn50_finetune", make_tensor, folder)
    )
    arrays = dict(np.load(folder / "finetune_rn50.npz"))
    variables = _tower(config, tensors, "student")
    return step.errors_of(arrays, config, variables, embeddings, head, jnp.float64)


def _weights(arch: str, folder: Path):
    """RN50's architecture and the reference's random weights."""
    from regionclip_jax.models.presets import PRESETS

    make = _load(TESTS / "golden" / "make_weights.py").make_state_dict
    return PRESETS["RN50"], make(arch, root=folder)


def _tower(config, tensors, name: str) -> dict:
    from regionclip_jax.conversion.regionclip_keys import to_openai

    return _variables(config, {"logit_scale": np.log(1 / 0.07), **to_openai(tensors, name)[0]})


def _variables(config, named) -> dict:
    """A model's variables in double precision, without a tower that ``named`` lacks."""
    from regionclip_jax.artifacts.model_checkpoint import abstract_variables, flatten, unflatten
    from regionclip_jax.conversion.clip_keys import origin
    from regionclip_jax.conversion.layouts import to_parameter

    leaves = {}
    for path, leaf in flatten(abstract_variables(config)).items():
        where = origin(path.partition("/")[2], len(leaf.shape))
        if where.name in named:
            leaves[path] = jnp.asarray(to_parameter(named[where.name], where), jnp.float64)
    return unflatten(leaves)


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    jnp.float32 = jnp.float64
    errors_of = {"pretrain": pretrain_errors, "finetune": finetune_errors}[sys.argv[1]]
    print(json.dumps(errors_of(Path(sys.argv[2]))))
