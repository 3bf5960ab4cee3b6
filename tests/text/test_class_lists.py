import json

import pytest

from regionclip_jax.text.class_lists import read_class_list

CATEGORIES = [{"id": 7, "name": "remote_control"}, {"id": 2, "name": "fan_(machine)"}]


def test_names_come_from_words_a_text_file_or_an_annotation_file(tmp_path):
    assert read_class_list("cat, remote control ,a dog") == ("cat", "remote control", "a dog")
    (tmp_path / "names.txt").write_text("cat\t120\n\n remote control\n")
    assert read_class_list(str(tmp_path / "names.txt")) == ("cat", "remote control")
    (tmp_path / "lvis.json").write_text(json.dumps({"categories": CATEGORIES, "images": []}))
    assert read_class_list(str(tmp_path / "lvis.json")) == ("fan machine", "remote control")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "class list: .* found an empty name"),
        ("cat,,dog", "class list: .* found an empty name"),
        ("cat, dog,cat", r"\['cat'\] more than once"),
    ],
)
def test_lists_without_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_class_list(given)


@pytest.mark.parametrize("content", ["no json", "[1, 2]", '{"categories": [{"id": 1}]}', "{}"])
def test_json_without_categories_is_refused_by_name(tmp_path, content):
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(ValueError, match=r"boxes\.json: expected JSON with categories"):
        read_class_list(str(tmp_path / "boxes.json"))


def test_files_without_names_or_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.txt"):
        read_class_list(str(tmp_path / "missing.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt: .* found none"):
        read_class_list(str(tmp_path / "empty.txt"))
