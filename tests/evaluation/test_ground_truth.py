import copy
import json
import math

import pytest

from regionclip_jax.data.sources.annotation_files import (
    as_annotation_file,
    read_annotation_file,
)
from regionclip_jax.evaluation.ground_truth import (
    coco_ground_truth,
    keep_categories,
    lvis_ground_truth,
)


def opened(ground_truth):
    if isinstance(ground_truth, dict):
        return as_annotation_file("ground truth", ground_truth)
    return read_annotation_file(ground_truth)


def read_coco(ground_truth):
    return coco_ground_truth(opened(ground_truth))


def read_lvis(ground_truth):
    return lvis_ground_truth(opened(ground_truth))


@pytest.fixture
def coco():
    return {
        "images": [{"id": 10}, {"id": 11}, {"id": 12}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 7, "name": "owl"}],
        "annotations": [
            {"id": 4, "image_id": 10, "category_id": 1, "bbox": [0, 0, 2, 3]},
            {"id": 0, "image_id": 11, "category_id": 7, "bbox": [0, 0, 9, 9], "area": 5},
        ],
    }


@pytest.fixture
def lvis(coco):
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return coco | {
        "images": [image | lists for image in coco["images"]],
        "categories": [category | {"frequency": "r"} for category in coco["categories"]],
    }


def doubled(content, key, entry=0):
    return content | {key: [*content[key], content[key][entry]]}


def written(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_annotations_get_default_fields_and_ids_from_one(coco):
    before = copy.deepcopy(coco)
    truth = read_coco(coco)
    assert [(a["id"], a["area"], a["iscrowd"]) for a in truth.annotations] == [(1, 6, 0), (2, 5, 0)]
    assert coco == before


@pytest.mark.parametrize("read", [read_coco, read_lvis])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("images", r"image id 10 occurs 2 times \(1 such ids\).*remove the doubles"),
        ("annotations", "annotation id 4 occurs 2 times"),
        ("categories", "category id 1 occurs 2 times"),
    ],
)
def test_duplicate_ids_are_refused_with_file_and_id(lvis, coco, tmp_path, read, key, message):
    content = doubled(coco if read is read_coco else lvis, key)
    with pytest.raises(ValueError, match=rf"instances\.json: {message}"):
        read(written(tmp_path, content))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("images", {"id": None}, "1 of kind image have no 'id'"),
        ("categories", {"name": None}, "1 of kind category have no 'name'"),
        ("categories", {"name": "owl"}, "2 categories have the name 'owl'"),
        ("annotations", {"image_id": 99}, "annotation 4: 'image_id': found 99, which is not"),
        ("annotations", {"category_id": 3}, "annotation 4: 'category_id': found 3, which is not"),
        ("annotations", {"bbox": None}, r"annotation 4: 'bbox': expected \[x, y, .*found None"),
        ("annotations", {"bbox": [0, 0, 1]}, r"annotation 4: 'bbox'"),
        ("annotations", {"bbox": [0, 0, 1, float("inf")]}, r"annotation 4: 'bbox'"),
        ("annotations", {"bbox": [0, 0, -1, 2]}, r"annotation 4: 'bbox'.*not negative"),
        ("annotations", {"area": "twelve"}, r"annotation 4: 'area': .*found 'twelve'"),
        ("annotations", {"area": float("nan")}, r"annotation 4: 'area': .*found nan"),
        ("annotations", {"iscrowd": "no"}, r"annotation 4: 'iscrowd': .*found 'no'"),
        ("annotations", {"id": [4]}, r"annotation number 0: 'id': .*list"),
        ("images", {"id": "cat_1"}, r"image number 0: 'id': .*'cat_1' \(str\)"),
        (
            "annotations",
            {"segmentation": {"size": [2, 2], "counts": "9"}},
            "4: 'segmentation': run",
        ),
        ("annotations", {"segmentation": {"counts": [4]}}, "annotation 4: 'segmentation'"),
    ],
)
def test_an_invalid_entry_is_refused(coco, key, change, message):
    coco[key][0] |= change
    with pytest.raises(ValueError, match=message):
        read_coco(coco)


def test_numbers_written_as_text_are_the_same_ground_truth(coco):
    expected = read_coco(coco)
    for entry in coco["annotations"]:
        entry |= {key: str(entry[key]) for key in entry if key not in ("bbox", "id")}
        entry |= {"iscrowd": "0", "bbox": [str(value) for value in entry["bbox"]]}
    coco["images"] = [{"id": str(image["id"])} for image in coco["images"]]
    assert read_coco(coco) == expected


@pytest.mark.parametrize("missing", [{"area": None}, {"iscrowd": None}, {"iscrowd": False}])
def test_an_empty_value_is_a_missing_one(coco, missing):
    expected = read_coco(coco)
    coco["annotations"][0] |= missing
    assert read_coco(coco) == expected


def test_crowds_alone_are_refused(coco):
    coco["annotations"] = [entry | {"iscrowd": 1} for entry in coco["annotations"]]
    with pytest.raises(ValueError, match="all 2 annotations have iscrowd = 1: groups.*set it to 0"):
        read_coco(coco)


@pytest.mark.parametrize(
    ("key", "mark"),
    [
        ("categories", {"frequency": "r"}),
        ("images", {"neg_category_ids": [1]}),
        ("images", {"not_exhaustive_category_ids": []}),
    ],
)
def test_an_lvis_file_is_refused_as_coco(coco, tmp_path, key, mark):
    coco[key][-1] |= mark
    message = rf"instances\.json.*{next(iter(mark))}.*LVIS file.*evaluation\.lvis"
    with pytest.raises(ValueError, match=message):
        read_coco(written(tmp_path, coco))


@pytest.mark.parametrize("read", [read_coco, read_lvis])
@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_an_entry_that_is_no_json_object_is_refused_with_its_number(lvis, coco, read, key):
    content = coco if read is read_coco else lvis
    content[key].append(7)
    with pytest.raises(ValueError, match=rf"{key}, entry {len(content[key]) - 1}: expected a JSON"):
        read(content)


def test_a_coco_file_is_refused_as_lvis(coco, tmp_path):
    message = r"instances\.json: category 1: 'frequency'.*found None.*evaluation\.coco"
    with pytest.raises(ValueError, match=message):
        read_lvis(written(tmp_path, coco))


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_an_lvis_image_without_its_category_lists_is_refused(lvis, key):
    del lvis["images"][1][key]
    with pytest.raises(ValueError, match=f"image 11: no '{key}'"):
        read_lvis(lvis)


@pytest.mark.parametrize("found", [["1"], [1.0], None, 1])
@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_an_lvis_image_with_other_lists_than_of_integers_is_refused(lvis, key, found):
    lvis["images"][1][key] = found
    with pytest.raises(ValueError, match=f"image 11: '{key}': expected a list of integers"):
        read_lvis(lvis)


@pytest.mark.parametrize("mark", ["iscrowd", "ignore"])
def test_lvis_has_no_crowd_regions(lvis, mark):
    lvis["annotations"][1][mark] = 0
    assert len(read_lvis(lvis).annotations) == 2
    lvis["annotations"][1][mark] = 1
    with pytest.raises(ValueError, match="annotation 0 is marked as crowd or to be ignored"):
        read_lvis(lvis)


def test_selected_categories_keep_their_ids_and_their_images(coco):
    crowd = {"id": 5, "image_id": 12, "category_id": 7, "bbox": [0, 0, 1, 1], "iscrowd": 1}
    coco["annotations"].append(crowd)
    truth = read_coco(coco)
    kept = keep_categories(truth, {"owl"})
    assert kept.images == [{"id": 11}, {"id": 12}]
    assert kept.categories == [{"id": 7, "name": "owl"}]
    assert kept.annotations == truth.annotations[1:]


def test_a_category_missing_in_the_file_is_named(coco, tmp_path):
    with pytest.raises(ValueError, match=r"instances\.json: no categories \['bee'\] among the 2"):
        keep_categories(read_coco(written(tmp_path, coco)), ["cup", "bee"])


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value) if isinstance(value, list) else items:
        yield from places(part, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [None, -1, 2**200, 1.5, math.nan, math.inf, "a" * 10**4, [], {}, nested(600), [[1e300] * 6]],
    ids=lambda value: str(value)[:9],
)
def test_any_value_in_any_place_is_read_or_refused_in_one_line(lvis, coco, value):
    outlines = [[[0, 0, 2, 0, 2, 2]], {"size": [9, 9], "counts": [0, 81]}]
    for content, read in ((lvis, read_lvis), (coco, read_coco)):
        content["images"] = [image | {"height": 9, "width": 9} for image in content["images"]]
        content["annotations"] = [
            annotation | {"segmentation": outline, "iscrowd": 0}
            for annotation, outline in zip(content["annotations"], outlines, strict=True)
        ]
        for path in places(content):
            try:
                read(replaced(content, path, value) if path else {"images": value})
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize(
    "polygon", [[1e9, 0, 2, 0, 2, 2], [math.nan, 0, 2, 0, 2, 2], ["1", 0, 2, 0, 2, 2]]
)
def test_polygons_far_beyond_any_image_are_refused(coco, polygon):
    coco["annotations"][0]["segmentation"] = [polygon]
    with pytest.raises(ValueError, match="annotation 4: 'segmentation': a polygon with the coord"):
        read_coco(coco)
