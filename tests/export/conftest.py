"""Model directories with random numbers, for exports."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="session")
def run_onnx():
    """``run_onnx(program, *inputs)``: outputs of a file or of its bytes, from onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def run(program: Path | bytes, *inputs: np.ndarray) -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(program, options)
        names = [one.name for one in session.get_inputs()]
        return session.run(None, dict(zip(names, inputs, strict=True)))

    return run


@pytest.fixture(scope="session")
def canvas_inputs():
    """``canvas_inputs(image, side)``: canvas, size and scale, as the document prepares them."""

    def prepare(image: np.ndarray, side: int) -> list[np.ndarray]:
        sides = np.array(image.shape[:2])
        size = (sides * side / sides.max() + 0.5).astype(np.int32)
        resized = Image.fromarray(image).resize(size[::-1].tolist(), Image.Resampling.BILINEAR)
        canvas = np.zeros((side, side, 3), np.uint8)
        canvas[: size[0], : size[1]] = resized
        return [canvas, size, (size / sides).astype(np.float32)]

    return prepare
