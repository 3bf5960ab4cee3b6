"""Training classes of a detector or localizer."""

import json

import pytest

from regionclip_jax.assembly import detection_data
from regionclip_jax.settings import BoxDataSettings, ConfigError

CATEGORIES = {"bow_(weapon)": "r", "alarm_clock": "c", "cat": "f", "dog": "c"}


@pytest.fixture
def lvis(tmp_path, scene_record):
    """Folder in the LVIS layout, with the category names of LVIS."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "1.png").write_bytes(scene_record(0, False).image)
    image = {
        "id": 1, "height": 64, "width": 64, "coco_url": "http://images/train2017/1.png",
        "neg_category_ids": [], "not_exhaustive_category_ids": [],
    }  # fmt: skip
    content = {
        "images": [image],
        "categories": [
            {"id": i, "name": name, "frequency": letter}
            for i, (name, letter) in enumerate(CATEGORIES.items(), start=1)
        ],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": [4, 6, 20, 30]}
            for i in range(1, len(CATEGORIES) + 1)
        ],
    }
    (tmp_path / "annotations" / "lvis_v1_train.json").write_text(json.dumps(content))
    return tmp_path


def classes(source: str, path, split: str, chosen: str) -> tuple[str, ...]:
    settings = BoxDataSettings(source=source, path=str(path), split=split, classes=chosen)
    return tuple(detection_data.build_training_set(settings, None).category_names)


def test_the_base_classes_of_lvis_are_common_or_frequent_in_any_spelling(lvis):
    assert classes("lvis_folder", lvis, "train", "lvis_base") == ("alarm_clock", "cat", "dog")
    assert classes("lvis_folder", lvis, "train", "all") == tuple(CATEGORIES)


def test_base_classes_missing_in_the_data_are_refused_with_the_key(lvis, boxes_directory):
    with pytest.raises(
        ConfigError, match=r"classes: 'coco_base': 'coco_48_17' names .*Lvis.*not have"
    ):
        classes("lvis_folder", lvis, "train", "coco_base")
    with pytest.raises(
        ConfigError, match=r"data\.classes: 'lvis_base': 'lvis' needs an LVIS annotation file"
    ):
        classes("array_record", boxes_directory, "", "lvis_base")
