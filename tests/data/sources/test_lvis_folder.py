import json

import numpy as np
import pytest

from regionclip_jax.data.sources.lvis_folder import LvisInstancesSource


@pytest.fixture
def content():
    images = [
        {"id": 8, "height": 10, "width": 20, "coco_url": "http://x/train2017/b.jpg"},
        {"id": 3, "height": 10, "width": 20, "coco_url": "http://x/val2017/a.jpg"},
    ]
    for image in images:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return {
        "images": images,
        "annotations": [{"id": 1, "image_id": 8, "category_id": 7, "bbox": [2, 3, 30, 4]}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.fixture
def write(tmp_path):
    def write(content, images=("train2017/b.jpg", "val2017/a.jpg")):
        for name in ("annotations", "train2017", "val2017"):
            (tmp_path / name).mkdir(exist_ok=True)
        for image in images:
            (tmp_path / image).write_bytes(image.encode())
        (tmp_path / "annotations" / "lvis_v1_val.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_images_are_read_from_the_path_of_their_url_in_order_of_their_ids(write, content):
    source = LvisInstancesSource(write(content), "val")
    assert source.category_names == ("dog", "cat") and source.category_ids == (2, 7)
    first, second = source[0], source[1]
    assert (first.image_id, first.image, len(first.boxes)) == (3, b"val2017/a.jpg", 0)
    assert (second.image_id, second.image) == (8, b"train2017/b.jpg")
    np.testing.assert_array_equal(second.boxes, [[2, 3, 20, 7]])
    assert second.classes.tolist() == [1] and not second.crowd.any()
    assert source.report["boxes_clipped"] == 1 and len(source) == 2
    np.testing.assert_array_equal(source.sizes(), [[10, 20], [10, 20]])


def test_a_coco_file_a_missing_image_and_a_missing_file_are_refused(write, content):
    root = write(content, images=("val2017/a.jpg",))
    with pytest.raises(ValueError, match=r"1 of 2 images .* missing 1 \(train2017/b\.jpg\)"):
        LvisInstancesSource(root, "val")
    source = LvisInstancesSource(root, "val", max_skipped_fraction=0.5)
    assert len(source) == 1 and source.report["images_missing"] == 1
    with pytest.raises(FileNotFoundError, match="lvis_v1_train.json"):
        LvisInstancesSource(root, "train")
    for image in content["images"]:
        del image["neg_category_ids"]
    with pytest.raises(ValueError, match=r"image 8: expected coco_url and neg_category_ids"):
        LvisInstancesSource(write(content), "val")


def test_frequencies_are_in_the_order_of_classes_and_unknown_ones_are_refused(write, content):
    assert LvisInstancesSource(write(content), "val").frequencies == ()
    for category, letter in zip(content["categories"], "rf", strict=True):
        category["frequency"] = letter
    source = LvisInstancesSource(write(content), "val")
    assert source.frequencies == ("f", "r") and source.metric == "lvis"
    content["categories"][0]["frequency"] = "x"
    with pytest.raises(ValueError, match=r"val\.json: category 7: 'frequency': .*found 'x'"):
        LvisInstancesSource(write(content), "val")


def test_the_content_of_the_file_is_kept_for_an_evaluation_only(write, content):
    root = write(content)
    assert LvisInstancesSource(root, "val").annotation_file is None
    kept = LvisInstancesSource(root, "val", keep_file=True).annotation_file
    assert kept.is_lvis and kept.annotations == content["annotations"]
