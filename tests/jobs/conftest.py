import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True, scope="session")
def _presets(nano_presets):
    """Register the presets ``nano_vit`` and ``nano_resnet`` for all tests of this folder."""


@pytest.fixture
def masked_folder(tmp_path) -> str:
    """Eight images in the COCO layout, where the left halves of gray squares are the objects."""
    rng = np.random.default_rng(0)
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    images, annotations = [], []
    for image_id in range(1, 9):
        x, y, side = (int(v) for v in rng.integers((2, 2, 24), (24, 24, 38)))
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[y : y + side, x : x + side] = 150
        Image.fromarray(pixels).save(tmp_path / "train" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 64, "width": 64})
        half = [x, y, x + side / 2, y, x + side / 2, y + side, x, y + side]
        annotations.append(
            {
                "id": image_id,
                "image_id": image_id,
                "category_id": 1,
                "bbox": [x, y, side, side],
                "area": side * side / 2,
                "iscrowd": 0,
                "segmentation": [half],
            }
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "square"}],
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return str(tmp_path)
