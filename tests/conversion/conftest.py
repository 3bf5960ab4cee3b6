"""Golden weights and the small writers that the conversion tests share.

``pico_clip*``, ``*layouts*``, ``small_legacy.pth`` and ``embeddings.pth`` were written by torch
2.13 and safetensors 0.8. pico is a ResNet CLIP of width 2 in the names of ``shapes_pico_clip.json``
with the weights of ``make_weights.py``, saved with torch.save (zip; legacy, in a wrapper and with
``module.``) and, partly in fp16 with OpenAI's three scalars, with torch.jit.trace(...).save.
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
    """The reference's random weights by OpenAI's names: nano_clip, pico_clip, vit_tiny."""
    from parity.golden import make_state_dict

    return make_state_dict


@pytest.fixture
def write_safetensors(tmp_path):
    """Writes named arrays as safetensors and gives the path."""

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
