"""Golden weights and writers of small files for the conversion tests.

torch 2.13 and safetensors 0.8 wrote ``pico_clip*``, ``*layouts*``, ``small_legacy.pth`` and
``embeddings.pth``. pico is a ResNet CLIP of width 2 with the names of ``shapes_pico_clip.json`` and
the weights of ``make_weights.py``. It was saved with torch.save as zip and in the legacy format,
the latter in a wrapper and with ``module.``. torch.jit.trace(...).save wrote it partly in float16
with OpenAI's three scalars.
"""

from pathlib import Path

import numpy as np
import pytest

import checkpoints
from regionclip_jax.conversion import regionclip_keys
from regionclip_jax.conversion.archives import read_tensors

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def make_state_dict():
    """``make_state_dict(arch)``: random weights by OpenAI's names (nano_clip, pico_clip, ...)."""
    from parity.golden import make_state_dict

    return make_state_dict


@pytest.fixture(scope="session")
def clip_tensors(make_state_dict):
    """``clip_tensors(arch)``: the same with the vocabulary of CLIP's tokenizer."""
    return lambda arch: checkpoints.with_vocabulary(make_state_dict(arch))


@pytest.fixture
def write_safetensors(tmp_path):
    """``write_safetensors(tensors, name)``: the path of a file with these arrays.

    Readers go by the content. The ending says how the file was published: ``.safetensors`` and
    ``.bin`` with a configuration file beside it.
    """

    def write(tensors: dict[str, np.ndarray], name: str = "model.pth") -> Path:
        return checkpoints.write_safetensors(tmp_path / name, tensors)

    return write


@pytest.fixture
def pico_file(golden, write_safetensors):
    """``pico_file(name)``: a file with the tensors of a golden one and CLIP's vocabulary."""

    def write(name: str = "pico_clip.pth") -> Path:
        tensors = regionclip_keys.strip_common_prefix(read_tensors(golden / name))
        return write_safetensors(checkpoints.with_vocabulary(tensors), name)

    return write
