"""Model directories with random numbers, for exports."""

import dataclasses

import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import ModelCard
from regionclip_jax.artifacts.model_checkpoint import (
    abstract_variables,
    flatten,
    save_model,
    unflatten,
)


@pytest.fixture(scope="session")
def random_variables():
    """``random_variables(abstract)``: every number drawn, as zeros would hide missing tensors."""

    def draw(abstract: dict) -> dict:
        rng = np.random.default_rng(0)
        return unflatten(
            {
                path: (rng.standard_normal(leaf.shape) * 0.1).astype(np.float32)
                for path, leaf in flatten(abstract).items()
            }
        )

    return draw


@pytest.fixture(scope="session")
def small_configs(nano_configs):
    """The two small architectures with the vocabulary of CLIP's tokenizer."""
    return {
        name: dataclasses.replace(
            config, text=dataclasses.replace(config.text, vocab_size=49408, context_length=77)
        )
        for name, config in nano_configs.items()
    }


@pytest.fixture
def save_random(tmp_path, random_variables):
    """``save_random(config)``: a model directory with random numbers."""

    def save(config):
        save_model(tmp_path / "model", random_variables(abstract_variables(config)),
                   ModelCard(config, {"run": "test"}))  # fmt: skip
        return tmp_path / "model"

    return save
