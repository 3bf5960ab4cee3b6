import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax.data.sources.annotation_files import as_annotation_file, read_boxes
from regionclip_jax.data.sources.coco_folder import CocoCaptionsSource, CocoInstancesSource
from regionclip_jax.data.sources.records import RecordError

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
            box(2, 3, [5, -9, 4, 4]),
        ],
        categories=[{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    )
    return tmp_path


def caption(image_id, text):
    return {"id": 1, "image_id": image_id, "caption": text}


def box(image_id, category_id, bbox, **more):
    return {"id": 1, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def write(root, prefix, annotations, **more):
    content = {"images": IMAGES, "annotations": annotations, **more}
    (root / "annotations" / f"{prefix}_val.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("prefix", "make", "heights"),
    [("captions", CocoCaptionsSource, [2, 9]), ("instances", CocoInstancesSource, [2, 5, 9])],
)
def test_sizes_come_from_the_file_in_the_order_of_the_records(root, prefix, make, heights):
    path = root / "annotations" / f"{prefix}_val.json"
    content = json.loads(path.read_text())
    content["images"] = [image | {"height": image["id"]} for image in IMAGES]
    path.write_text(json.dumps(content))
    assert make(root, "val").sizes().tolist() == [[height, 16] for height in heights]


def test_captions_are_read_with_their_image_in_ascending_image_id(root, encode_image):
    source = CocoCaptionsSource(root, "val")
    assert [(source[i].key, source[i].captions) for i in range(len(source))] == [
        ("two.png", ("c",)),
        ("nine.png", ("a", "b")),
    ]
    assert source[0].image == encode_image(2)
    assert source.report["images_without_caption"] == 1


def test_classes_are_numbered_in_ascending_category_id(root):
    source = CocoInstancesSource(root, "val")
    assert source.category_names == ("car", "toothbrush") and source.category_ids == (3, 90)
    assert [source[i].image_id for i in range(len(source))] == [2, 5, 9]
    assert source[2].classes.tolist() == [1, 0, 0]


def test_boxes_become_corners_are_clipped_and_crowds_are_flagged(root):
    record = CocoInstancesSource(root, "val")[2]
    assert record.boxes.tolist() == [[1, 2, 4, 6], [10, 8, 16, 12], [0, 0, 16, 12]]
    assert record.boxes.dtype == np.float32
    assert record.crowd.tolist() == [False, False, True]


def test_empty_boxes_are_dropped_and_counted_and_the_image_is_kept(root):
    source = CocoInstancesSource(root, "val")
    assert source[0].boxes.shape == (0, 4) and source[0].classes.shape == (0,)
    assert source.report == {
        "images": 3,
        "images_without_box": 2,
        "boxes": 3,
        "crowd_boxes": 1,
        "boxes_clipped": 1,
        "boxes_dropped_empty": 3,
    }


@pytest.mark.parametrize("make", [CocoCaptionsSource, CocoInstancesSource])
def test_missing_images_are_refused_or_counted_up_to_the_limit(root, make):
    (root / "val" / "nine.png").unlink()
    with pytest.raises(ValueError, match=r"_val\.json: 1 of 3 images .*0\.00%.* 1 \(nine\.png\)"):
        make(root, "val")
    with pytest.raises(ValueError, match="raise max_skipped_fraction"):
        make(root, "val", max_skipped_fraction=0.33)
    source = make(root, "val", max_skipped_fraction=0.34)
    assert source.report["images_missing"] == 1
    assert source.named["images_missing"] == ["nine.png"]
    assert "nine.png" not in [source[i].key for i in range(len(source))]


def test_an_annotation_file_without_an_image_of_the_folder_is_always_refused(root):
    for name in ("two.png", "five.png", "nine.png"):
        (root / "val" / name).unlink()
    with pytest.raises(ValueError, match=r"3 of 3 images .* missing 3 \(five\.png, nine"):
        CocoInstancesSource(root, "val", max_skipped_fraction=1.0)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (box(77, 3, [1, 2, 3, 4]), "of_an_unknown_image"),
        (box([9], 3, [1, 2, 3, 4]), "of_an_unknown_image"),
        (box(9, 77, [1, 2, 3, 4]), "of_an_unknown_category"),
        (box(9, "car", [1, 2, 3, 4]), "of_an_unknown_category"),
        ({"id": 1, "image_id": 9, "category_id": 3}, "without_usable_box"),
        (box(9, 3, None), "without_usable_box"),
        (box(9, 3, [1, 2, 3]), "without_usable_box"),
        (box(9, 3, [1, 2, "3", 4]), "without_usable_box"),
        (box(9, 3, [1, 2, -3, 4]), "without_usable_box"),
        (box(9, 3, [float("nan"), 2, 3, 4]), "without_usable_box"),
        (box(9, 3, [1, 2, 10**400, 4]), "without_usable_box"),
        ("not an annotation", "without_usable_box"),
    ],
)
def test_skipped_annotations_are_refused_or_counted_and_the_others_kept(root, entry, reason):
    good = [box(9, 90, [1, 2, 3, 4]), box(2, 3, [1, 2, 3, 4])]
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
    write(root, "instances", [good[0], entry, good[1]], categories=categories)
    with pytest.raises(ValueError, match="1 of 3 annotations cannot be used"):
        CocoInstancesSource(root, "val")
    source = CocoInstancesSource(root, "val", max_skipped_fraction=0.4)
    assert source.report[f"annotations_{reason}"] == 1 and source.report["boxes"] == 2
    assert [len(source[i].boxes) for i in range(3)] == [1, 0, 1]
    write(root, "instances", [entry], categories=categories)
    with pytest.raises(ValueError, match="1 of 1 annotations .* repair it"):
        CocoInstancesSource(root, "val", max_skipped_fraction=1.0)


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {"id": 4, "height": 12, "width": 16},
        {"id": 4, "file_name": "a.png"},
        {"id": 4, "file_name": "a.png", "height": 0, "width": 16},
        {"id": None, "file_name": "a.png", "height": 12, "width": 16},
        {"id": 2, "file_name": "nine.png", "height": 12, "width": 16},
        {"id": 4, "file_name": "\0.png", "height": 12, "width": 16},
        {"id": 4, "file_name": "no/such/folder.png", "height": 12, "width": 16},
    ],
)
def test_skipped_images_are_counted_and_an_id_keeps_its_first_image(root, entry):
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    content["images"].append(entry)
    content["annotations"] = content["annotations"][:3]
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="1 of 4 images cannot be used"):
        CocoInstancesSource(root, "val")
    source = CocoInstancesSource(root, "val", max_skipped_fraction=0.25)
    assert [source[i].key for i in range(3)] == ["two.png", "five.png", "nine.png"]


def test_images_may_be_in_subfolders(root):
    (root / "val" / "part").mkdir()
    (root / "val" / "two.png").rename(root / "val" / "part" / "two.png")
    images = [{**IMAGES[1], "file_name": "part/two.png"}]
    content = {"images": images, "annotations": [caption(2, "c")]}
    (root / "annotations" / "captions_val.json").write_text(json.dumps(content))
    assert CocoCaptionsSource(root, "val")[0].key == "part/two.png"


@pytest.mark.parametrize("text", [None, 7, ["a"], "", "  \n"])
def test_captions_without_text_are_counted(root, text):
    write(root, "captions", [caption(9, "a"), caption(9, text), caption(2, "c")])
    with pytest.raises(ValueError, match="1 of 3 captions"):
        CocoCaptionsSource(root, "val")
    source = CocoCaptionsSource(root, "val", max_skipped_fraction=0.4)
    assert [source[i].captions for i in range(2)] == [("c",), ("a",)]


@pytest.mark.parametrize("make", [CocoCaptionsSource, CocoInstancesSource])
def test_sizes_are_known_without_opening_an_image(root, make):
    source = make(root, "val")
    np.testing.assert_array_equal(source.sizes(), [[12, 16]] * len(source))


def test_sizes_of_captioned_images_are_unknown_if_missing_in_the_file(root):
    images = [{"id": 2, "file_name": "two.png"}]
    content = {"images": images, "annotations": [caption(2, "c")]}
    (root / "annotations" / "captions_val.json").write_text(json.dumps(content))
    assert CocoCaptionsSource(root, "val").sizes() is None


@pytest.mark.parametrize("make", [CocoCaptionsSource, CocoInstancesSource])
def test_a_missing_folder_or_annotation_file_is_named_with_the_remedy(root, make):
    with pytest.raises(FileNotFoundError, match=r"no split 'test': .*_test\.json.* has \['val'\]"):
        make(root, "test")
    for name in ("two.png", "five.png", "nine.png"):
        (root / "val" / name).unlink()
    (root / "val").rmdir()
    with pytest.raises(FileNotFoundError, match="val does not exist.*expected the images"):
        make(root, "val")


def test_a_captions_file_without_captions_is_refused(root):
    write(root, "captions", [])
    with pytest.raises(ValueError, match=r"captions_val\.json has no captions"):
        CocoCaptionsSource(root, "val")
    write(root, "captions", [box(9, 3, [1, 2, 3, 4])])
    with pytest.raises(ValueError, match=r"1 of 1 captions .* no text 1 \(1: \['bbox'"):
        CocoCaptionsSource(root, "val")


def test_invalid_annotation_files_are_refused(root):
    for categories, message in [
        (None, "no categories"),
        ([], "no categories"),
        ([{"id": 1}], "categories with id and name"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "there twice"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "there twice"),
    ]:
        write(root, "instances", [], categories=categories)
        with pytest.raises(ValueError, match=message):
            CocoInstancesSource(root, "val")
    path = root / "annotations" / "instances_val.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"instances_val\.json is not JSON"):
        CocoInstancesSource(root, "val")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"instances_val\.json is not JSON"):
        CocoInstancesSource(root, "val")
    for text in ("[]", "7", '{"images": {}, "annotations": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected a COCO annotation file"):
            CocoInstancesSource(root, "val")


def test_an_image_deleted_after_opening_is_a_record_error(root):
    source = CocoCaptionsSource(root, "val")
    (root / "val" / "two.png").unlink()
    with pytest.raises(RecordError, match=r"CocoCaptionsSource.*two\.png: cannot be read"):
        _ = source[0]


@pytest.mark.parametrize("make", [CocoCaptionsSource, CocoInstancesSource])
def test_a_pickled_source_has_the_same_repr_and_records(root, make):
    source = make(root, "val")
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) and copy[0].image == source[0].image


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ENTRIES = ANYTHING | st.fixed_dictionaries(
    {},
    optional={
        "image_id": st.sampled_from([2, 5]) | ANYTHING,
        "category_id": st.sampled_from([3, 90]) | ANYTHING,
        "bbox": st.lists(st.integers(-3, 20) | st.floats() | ANYTHING, min_size=3, max_size=5),
        "iscrowd": ANYTHING,
    },
)


@pytest.mark.property
@given(st.lists(ENTRIES, max_size=4))
def test_any_annotations_become_boxes_in_their_images_or_are_counted(entries):
    good = box(5, 3, [1, 2, 3, 4])
    file = as_annotation_file("a file", {"images": [], "annotations": [*entries, good]})
    boxes, counts, skipped = read_boxes(file, (3, 90), {2: (12, 16), 5: (12, 16)})
    number = sum(len(of_image.boxes) for of_image in boxes.values())
    dropped = counts["boxes_dropped_empty"] + skipped.report.total()
    assert number + dropped == len(entries) + 1
    assert boxes[5].boxes[-1].tolist() == [1, 2, 4, 6]
    for of_image in boxes.values():
        x1, y1, x2, y2 = of_image.boxes.T
        assert (0 <= x1).all() and (x1 < x2).all() and (x2 <= 16).all()
        assert (0 <= y1).all() and (y1 < y2).all() and (y2 <= 12).all()
        assert set(of_image.classes.tolist()) <= {0, 1}
