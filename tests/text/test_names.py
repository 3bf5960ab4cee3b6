import json
import os
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionclip_jax import settings as sections
from regionclip_jax.assembly import concept_pool, detection_data
from regionclip_jax.conversion.convert_vocabulary import convert_vocabulary
from regionclip_jax.data.sources import yolo_labels
from regionclip_jax.text.concepts import write_concepts
from regionclip_jax.text.names import (
    check_names,
    match_names,
    read_names,
    resolve_names,
    tokenized_text,
)

CATEGORIES = [{"id": 7, "name": "remote_control"}, {"id": 2, "name": "fan_(machine)"}]


def pool_names(path):
    return concept_pool.pool_names(sections.ConceptSettings(names_file=str(path)), ())


def trained_classes(path):
    source = mock.Mock(category_names=("moon",))
    return detection_data._class_names(sections.BoxDataSettings(classes=str(path)), source)


def converted_names(path):
    rows = {"": np.ones((len(read_names(path)), 2), np.float32)}
    with (
        mock.patch("regionclip_jax.conversion.convert_vocabulary.read_tensors", lambda _: rows),
        mock.patch("regionclip_jax.conversion.convert_vocabulary.origin_of", lambda _: {}),
    ):
        return convert_vocabulary("emb.pth", path, path.parent / "converted").names


def yolo_names(path):
    path = path.rename(path.with_name("classes.txt"))
    return yolo_labels._read_names(path.parent)


READERS = {
    "--classes, --concepts": lambda path: resolve_names(str(path)),
    "--stop, --add": read_names,
    "concepts.names_file": pool_names,
    "data.classes": trained_classes,
    "--names": converted_names,
    "classes.txt": yolo_names,
}


def test_names_come_from_words_a_text_file_or_an_annotation_file(tmp_path):
    assert resolve_names("cat, remote control ,a dog") == ("cat", "remote control", "a dog")
    (tmp_path / "names.txt").write_text("cat\t120\n\n remote control\n")
    assert resolve_names(str(tmp_path / "names.txt")) == ("cat", "remote control")
    (tmp_path / "lvis.json").write_text(json.dumps({"categories": CATEGORIES, "images": []}))
    assert resolve_names(str(tmp_path / "lvis.json")) == ("fan machine", "remote control")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"cat\t120\ntraffic light\t7\n", ("cat", "traffic light")),
        (b"\xef\xbb\xbfcat\r\n\r\n traffic light \r\n", ("cat", "traffic light")),
        (b"cat,120\ntraffic light , 7", ("cat", "traffic light")),
        (b"cat\rtraffic light\r", ("cat", "traffic light")),
        (b"earrings, gold\nearrings, silver\t3\n", ("earrings, gold", "earrings, silver")),
        (b"# cat\n7-up\n", ("# cat", "7-up")),
    ],
)
def test_all_readers_read_the_same_names(tmp_path, reader, content, names):
    (tmp_path / "names.txt").write_bytes(content)
    assert READERS[reader](tmp_path / "names.txt") == names


_LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
_NAMES = st.lists(
    st.lists(_LETTERS, min_size=1, max_size=3).map(" ".join),
    min_size=1,
    unique_by=tokenized_text,
).filter(lambda names: not any(name.rpartition(",")[2].strip().isdigit() for name in names))


@pytest.mark.property
@pytest.mark.parametrize("reader", READERS)
@given(names=_NAMES, mark=st.booleans(), end=st.sampled_from(["\n", "\r\n"]), blank=st.booleans())
def test_any_written_list_is_read_unchanged_by_all_readers(
    tmp_path_factory, reader, names, mark, end, blank
):
    path = tmp_path_factory.mktemp("names") / "names.txt"
    write_concepts(path, [(name, 100 + row) for row, name in enumerate(names)])
    text = path.read_text(encoding="utf-8").replace("\n", end + " " * blank + end * blank)
    path.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    assert READERS[reader](path) == tuple(names)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"names\.txt: .* found none"),
        (b"\n \n", r"names\.txt: .* found none"),
        (b"cat\n\t7\n", r"names\.txt: .* an empty name at line 2"),
        (b"cat\n\ndog\ncat\t3\n", r"names\.txt: .*'cat' more than once, at line 1 and line 4"),
        (b"Cat\ncat\n", r"names\.txt: .*'Cat' at line 1 and 'cat' at line 2, which are the same"),
        ("cat\n".encode("utf-16"), r"names\.txt: expected UTF-8"),
    ],
)
def test_all_readers_refuse_invalid_lists_with_file_and_line(tmp_path, reader, content, message):
    (tmp_path / "names.txt").write_bytes(content)
    if reader == "classes.txt":
        message = message.replace("names", "classes", 1)
    with pytest.raises(ValueError, match=message):
        READERS[reader](tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.csv", "id,name\n0,cat\n", r"a\.csv: line 1: .*'id,name': a row of a table"),
        ("a.csv", "cat,7\n0,dog\n", r"line 2: .*'0,dog'"),
        ("a.csv", '"traffic light",3\n', r"line 1: .*traffic light"),
        ("a.tsv", "0\tcat\n1\tdog\n", r"a\.tsv: line 1: .*a row of a table"),
        ("data.yaml", "names: [cat, dog]\n", r"data\.yaml: .*structured text; give a text file"),
        ("a.txt", '["cat", "dog"]\n', r"a\.txt: .*structured text"),
        ("a.txt", '{"name": "cat"}\n{"name": "dog"}\n', r"a\.txt: .*structured text"),
        ("a.JSON", "[]", r"a\.JSON: expected JSON with categories"),
    ],
)
def test_a_table_or_structured_file_is_no_list_of_names(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        resolve_names(str(tmp_path / file))


def test_numbers_with_counts_are_names(tmp_path):
    (tmp_path / "digits.txt").write_text("0\t12\n1\t\n2,5\n")
    assert read_names(tmp_path / "digits.txt") == ("0", "1", "2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "class list: .* found an empty name"),
        ("cat,,dog", "class list: .* found an empty name at name 2"),
        ("cat, dog,cat", r"'cat' more than once, at name 1 and name 3"),
        ("c++, c", "'c\\+\\+' at name 1 and 'c' at name 2, which are the same text"),
        ("hot  dog, hot dog", "which are the same text to the tokenizer"),
    ],
)
def test_invalid_lists_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        resolve_names(given)


def test_a_path_is_never_a_class_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for missing in ("classes.csv", "my,names.txt", "my lists/"):
        with pytest.raises(FileNotFoundError, match=missing.rstrip("/")):
            resolve_names(missing)
    for name in ("TV/monitor", "St. Bernard", "dr.pepper, 7.5 oz can"):
        assert resolve_names(name) == tuple(part.strip() for part in name.split(","))
    many = [f"name {number}" for number in range(1203)]
    assert resolve_names(", ".join(many)) == tuple(many)
    (tmp_path / "classes.csv").write_text("cat,5\ndog,4\n")
    (tmp_path / "list").write_text("cat\ndog\n")
    assert resolve_names("classes.csv") == resolve_names("list") == ("cat", "dog")


def test_names_match_in_any_case_and_with_underscores():
    known = ("Remote_Control", "fan_(machine)", "cat", "Cat")
    result = match_names(("remote control", "fan machine", "Cat", "moon"), known)
    assert result == ("Remote_Control", "fan_(machine)", "Cat", "moon")


def test_a_string_is_refused_as_a_list_of_names():
    with pytest.raises(ValueError, match="names: expected a list of names, found the string 'cat'"):
        check_names("cat", "names")


@pytest.mark.parametrize(
    "content", ["no json", "[" * 10**5, "[1, 2]", '{"categories": [{"id": 1}]}', "{}"]
)
def test_json_without_categories_is_refused_by_name(tmp_path, content):
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(ValueError, match=r"boxes\.json.* JSON .*give an annotation file"):
        resolve_names(str(tmp_path / "boxes.json"))


def test_pipes_and_too_long_names_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", "/dev/zero"):
        with pytest.raises(FileNotFoundError):
            read_names(path)
    # The search for a count would take hours for this line.
    (tmp_path / "a.txt").write_text("cat\na" + " " * 10**6 + "b\n")
    with pytest.raises(ValueError, match="line 2: expected a name of at most 1000 characters"):
        read_names(tmp_path / "a.txt")
    with open(tmp_path / "b.txt", "wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match="more than 67108864 bytes"):
        read_names(tmp_path / "b.txt")
