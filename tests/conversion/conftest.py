"""Golden weights and writers of small files for the conversion tests.

torch 2.13 and safetensors 0.8 wrote ``pico_clip*``, ``*layouts*``, ``small_legacy.pth`` and
``embeddings.pth``. pico is a ResNet CLIP of width 2 with the names of ``shapes_pico_clip.json`` and
the weights of ``make_weights.py``. It was saved with torch.save as zip and in the legacy format,
the latter in a wrapper and with ``module.``. torch.jit.trace(...).save wrote it partly in float16
with OpenAI's three scalars.
"""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64"}


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def make_state_dict():
    """``make_state_dict(arch)``: random weights by OpenAI's names (nano_clip, pico_clip, ...)."""
    from parity.golden import make_state_dict

    return make_state_dict


@pytest.fixture
def write_safetensors(tmp_path):
    """``write_safetensors(tensors, name)``: the path of a file with these arrays."""

    def write(tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> Path:
        header, start = {}, 0
        for key, value in tensors.items():
            value = np.asarray(value)
            header[key] = {
                "dtype": _NAMES[str(value.dtype)],
                "shape": list(value.shape),
                "data_offsets": [start, start + math.prod(value.shape) * value.itemsize],
            }
            start = header[key]["data_offsets"][1]
        text = json.dumps(header).encode()
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for value in tensors.values():
                file.write(np.ascontiguousarray(value).tobytes())
        return path

    return write
