import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def encode_image():
    """``encode_image(number, ...)``: encoded image of random pixels, the same for each number."""

    def encode(number: int, height: int = 12, width: int = 16, file_format: str = "PNG") -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, file_format)
        return file.getvalue()

    return encode
