import json

import pytest

from regionclip_jax.text.categories import (
    COCO_80,
    COCO_BASE_48,
    COCO_NOVEL_17,
    COCO_OVD_65,
    LvisCategory,
    lvis_groups,
    read_lvis_categories,
)


def test_the_coco_splits_have_their_sizes_and_do_not_overlap():
    assert [len(set(s)) for s in (COCO_80, COCO_OVD_65, COCO_BASE_48, COCO_NOVEL_17)] == [
        80, 65, 48, 17,
    ]  # fmt: skip
    assert set(COCO_BASE_48) | set(COCO_NOVEL_17) == set(COCO_OVD_65) < set(COCO_80)
    assert not set(COCO_BASE_48) & set(COCO_NOVEL_17)


def test_the_coco_splits_keep_the_order_of_the_80():
    for split in (COCO_OVD_65, COCO_BASE_48, COCO_NOVEL_17):
        assert list(split) == [name for name in COCO_80 if name in split]
    assert COCO_BASE_48[:2] == ("person", "bicycle") and COCO_NOVEL_17[-1] == "scissors"


def test_lvis_categories_come_in_ascending_id_with_prepared_names(tmp_path):
    path = tmp_path / "lvis.json"
    entries = [
        {"id": 7, "name": "bow_(weapon)", "frequency": "r"},
        {"id": 2, "name": "cat", "frequency": "f"},
    ]
    expected = (LvisCategory(2, "cat", "f"), LvisCategory(7, "bow weapon", "r"))
    for content in (entries, {"categories": entries}):
        path.write_text(json.dumps(content))
        assert read_lvis_categories(path) == expected


def test_an_annotation_file_without_frequencies_is_refused_by_name(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"categories": [{"id": 1, "name": "cat"}]}))
    with pytest.raises(ValueError, match=r"coco\.json.*frequency.*COCO file.*lvis_v1"):
        read_lvis_categories(path)


def test_a_missing_lvis_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        read_lvis_categories(tmp_path / "nowhere.json")


def test_lvis_names_fall_into_three_groups():
    categories = [LvisCategory(i, f"kind {i}", letter) for i, letter in enumerate("fcrff")]
    assert lvis_groups(categories) == {
        "rare": ("kind 2",),
        "common": ("kind 1",),
        "frequent": ("kind 0", "kind 3", "kind 4"),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frequency": "x"}, "category 3: 'frequency': expected one of .*found 'x'"),
        ({"id": 1}, "2 categories have the id 1"),
        ({"name": "bow weapon"}, "2 categories have the name 'bow weapon'"),
    ],
)
def test_lvis_categories_that_cannot_be_told_apart_are_refused(tmp_path, change, message):
    path = tmp_path / "lvis.json"
    first = {"id": 1, "name": "bow_(weapon)", "frequency": "r"}
    second = {"id": 3, "name": "cat", "frequency": "f"} | change
    path.write_text(json.dumps([first, second]))
    with pytest.raises(ValueError, match=rf"lvis\.json: {message}"):
        read_lvis_categories(path)
