import json
import pickle

import numpy as np
import pytest

from regionclip_jax.data.records import RecordError
from regionclip_jax.data.sources.coco_folder import CocoCaptionsSource, CocoInstancesSource

IMAGES = [
    {"id": 9, "file_name": "nine.png", "height": 12, "width": 16},
    {"id": 2, "file_name": "two.png", "height": 12, "width": 16},
    {"id": 5, "file_name": "five.png", "height": 12, "width": 16},
]


@pytest.fixture
def root(tmp_path, encode_image):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    for image in IMAGES:
        data = encode_image(image["id"])
        (tmp_path / "val" / image["file_name"]).write_bytes(data)
    write(tmp_path, "captions", [caption(9, "a"), caption(9, "b"), caption(2, "c")])
    write(
        tmp_path,
        "instances",
        [
            box(9, 90, [1, 2, 3, 4]),
            box(9, 3, [10, 8, 20, 20]),
            box(9, 3, [0, 0, 16, 12], iscrowd=1),
            box(2, 3, [5, 5, 0, 4]),
            box(2, 3, [20, 5, 4, 4]),
            box(2, 3, [float("nan"), 5, 4, 4]),
        ],
        categories=[{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    )
    return tmp_path


def caption(image_id, text):
    return {"id": 1, "image_id": image_id, "caption": text}


def box(image_id, category_id, bbox, **more):
    return {"id": 1, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def write(root, kind, annotations, **more):
    content = {"images": IMAGES, "annotations": annotations, **more}
    (root / "annotations" / f"{kind}_val.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "make", "heights"),
    [("captions", CocoCaptionsSource, [2, 9]), ("instances", CocoInstancesSource, [2, 5, 9])],
)
def test_sizes_are_known_without_pictures_in_the_order_of_the_records(root, kind, make, heights):
    path = root / "annotations" / f"{kind}_val.json"
    content = json.loads(path.read_text())
    content["images"] = [image | {"height": image["id"]} for image in IMAGES]
    path.write_text(json.dumps(content))
    assert make(root, "val").sizes().tolist() == [[height, 16] for height in heights]


def test_captions_come_with_their_picture_in_ascending_image_id(root, encode_image):
    source = CocoCaptionsSource(root, "val")
    assert [(source[i].key, source[i].captions) for i in range(len(source))] == [
        ("two.png", ("c",)),
        ("nine.png", ("a", "b")),
    ]
    assert source[0].image == encode_image(2)
    assert source.report["images_without_caption"] == 1


def test_classes_are_contiguous_in_ascending_category_id(root):
    source = CocoInstancesSource(root, "val")
    assert source.category_names == ("car", "toothbrush") and source.category_ids == (3, 90)
    assert [source[i].image_id for i in range(len(source))] == [2, 5, 9]
    assert source[2].classes.tolist() == [1, 0, 0]


def test_boxes_become_corners_are_clipped_and_crowds_are_flagged(root):
    record = CocoInstancesSource(root, "val")[2]
    assert record.boxes.tolist() == [[1, 2, 4, 6], [10, 8, 16, 12], [0, 0, 16, 12]]
    assert record.boxes.dtype == np.float32
    assert record.crowd.tolist() == [False, False, True]


def test_empty_boxes_are_dropped_and_counted_and_the_picture_stays(root):
    source = CocoInstancesSource(root, "val")
    assert source[0].boxes.shape == (0, 4) and source[0].classes.shape == (0,)
    assert source.report == {
        "images": 3,
        "images_without_box": 2,
        "images_missing": 0,
        "boxes": 3,
        "crowd_boxes": 1,
        "boxes_clipped": 1,
        "boxes_dropped_empty": 3,
    }


@pytest.mark.parametrize("make", [CocoCaptionsSource, CocoInstancesSource])
def test_missing_pictures_are_refused_or_listed_up_to_the_limit(root, make):
    (root / "val" / "nine.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 3 .*missing_limit 0.*nine\.png"):
        make(root, "val")
    source = make(root, "val", missing_limit=1)
    assert source.missing_images == ("nine.png",) and source.report["images_missing"] == 1
    assert "nine.png" not in [source[i].key for i in range(len(source))]


@pytest.mark.parametrize("make", [CocoCaptionsSource, CocoInstancesSource])
def test_a_missing_folder_or_annotation_file_is_named_with_the_remedy(root, make):
    with pytest.raises(FileNotFoundError, match=r"_test\.json does not exist.*correct root"):
        make(root, "test")
    for name in ("two.png", "five.png", "nine.png"):
        (root / "val" / name).unlink()
    (root / "val").rmdir()
    with pytest.raises(FileNotFoundError, match="val does not exist.*pictures"):
        make(root, "val")


def test_a_captions_file_without_captions_is_refused(root):
    write(root, "captions", [])
    with pytest.raises(ValueError, match=r"captions_val\.json has no captions"):
        CocoCaptionsSource(root, "val")
    write(root, "captions", [box(9, 3, [1, 2, 3, 4])])
    with pytest.raises(ValueError, match="has no caption, but bbox"):
        CocoCaptionsSource(root, "val")


def test_broken_annotation_files_are_refused(root):
    write(root, "instances", [box(9, 77, [1, 2, 3, 4])], categories=[{"id": 3, "name": "car"}])
    with pytest.raises(ValueError, match="category 77"):
        CocoInstancesSource(root, "val")
    write(root, "instances", [])
    with pytest.raises(ValueError, match="no categories"):
        CocoInstancesSource(root, "val")
    path = root / "annotations" / "instances_val.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"instances_val\.json is not JSON"):
        CocoInstancesSource(root, "val")
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected a COCO annotation file"):
        CocoInstancesSource(root, "val")


def test_a_picture_that_vanishes_later_is_a_record_error(root):
    source = CocoCaptionsSource(root, "val")
    (root / "val" / "two.png").unlink()
    with pytest.raises(RecordError, match=r"CocoCaptionsSource.*two\.png: cannot be read"):
        _ = source[0]


@pytest.mark.parametrize("make", [CocoCaptionsSource, CocoInstancesSource])
def test_a_source_survives_pickling_with_the_same_repr(root, make):
    source = make(root, "val")
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) and copy[0].image == source[0].image
