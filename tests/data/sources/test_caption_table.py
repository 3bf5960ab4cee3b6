import pickle
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip_jax.data.sources.caption_table import CaptionTableSource


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "images/c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def table(folder, text, name="captions.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def contents(source):
    return {source[i].key: source[i].captions for i in range(len(source))}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'image,caption\na.jpg,one\nimages/c.jpg,"two, ""three"""\n'),
        (
            "t.csv",
            '\ufeffCaption , id,FILEPATH\r\none,1,a.jpg\r\n"two, ""three""",2,images/c.jpg',
        ),
        ("t.csv", 'a.jpg,one\nimages/c.jpg,"two, ""three"""\n'),
        ("t.tsv", 'one\ta.jpg\ntwo, "three"\timages/c.jpg\n'),
        ("t.TSV", 'title\tfile\none\ta.jpg\n\ntwo, "three"\timages/c.jpg\n'),
        (
            "t.jsonl",
            '{"file_name": "a.jpg", "text": "one"}\n\n'
            '{"text": "two, \\"three\\"", "file_name": "images/c.jpg"}',
        ),
    ],
)
def test_columns_are_identified_by_name_or_by_existing_files(folder, name, text):
    source = CaptionTableSource(table(folder, text, name))
    assert contents(source) == {"a.jpg": ("one",), "images/c.jpg": ('two, "three"',)}
    assert source[1].image == b"images/c.jpg" and source.sizes() is None


def test_rows_of_one_image_are_one_record_and_captions_may_have_several_lines(folder):
    text = 'file,text\nb.jpg,one\na.jpg,"two\nlines"\nb.jpg,three\n'
    source = CaptionTableSource(table(folder, text))
    assert contents(source) == {"b.jpg": ("one", "three"), "a.jpg": ("two\nlines",)}
    assert source.report == {"images": 2, "captions": 3}
    copy = pickle.loads(pickle.dumps(source))
    assert contents(copy) == contents(source) and repr(copy) == repr(source)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a.jpg", "without_file_or_caption 1 (3"),
        (b"a.jpg,  ", "with_an_empty_file_or_caption 1 (3"),
        (b",words", "with_an_empty_file_or_caption 1 (3"),
        (b"no.jpg,words", "whose_file_is_missing 1 (3: no.jpg"),
        (b"\0.jpg,words", "whose_file_is_missing 1 (3: \0.jpg"),
        (b"a.jpg,caf\xe9", "that_are_not_utf8 1 (3"),
        (b'a.jpg,"never closed', "without_file_or_caption 1 (3"),
        (b'a.jpg,"closed" too early', "without_file_or_caption 1 (3"),
        (b'a.jpg,"' + b"x" * 200_000 + b'"', "without_file_or_caption 1 (3"),
    ],
)
def test_a_skipped_row_is_counted_and_all_others_are_read(folder, row, reason):
    text = b"image,caption\na.jpg,one\n" + row + b'\nb.jpg,"two"\nimages/c.jpg,three\n'
    with pytest.raises(ValueError, match="1 of 4 rows cannot be used") as caught:
        CaptionTableSource(table(folder, text))
    assert reason.replace("_", " ") in str(caught.value)
    source = CaptionTableSource(table(folder, text), max_skipped_fraction=0.25)
    expected = {"a.jpg": ("one",), "b.jpg": ("two",), "images/c.jpg": ("three",)}
    assert contents(source) == expected


@pytest.mark.parametrize(
    "line", ['{"image": "a.jpg"}', '{"image": "a.jpg", "caption": null}', "[1]", "{", '"a"',
             '{"image": "a.jpg", "caption": "\\ud83d"}', '{"image": 7, "caption": "a"}', "[" * 9999]
)  # fmt: skip
def test_a_skipped_json_line_is_counted(folder, line):
    good = '{"image": "a.jpg", "caption": "one"}\n'
    path = table(folder, good + line + "\n", "t.jsonl")
    with pytest.raises(ValueError, match="1 of 2 rows"):
        CaptionTableSource(path)
    assert contents(CaptionTableSource(path, max_skipped_fraction=0.5)) == {"a.jpg": ("one",)}


def test_captions_of_a_hundred_kilobytes_or_with_a_nul_are_not_changed(folder):
    long = "word " * 20_000
    source = CaptionTableSource(table(folder, f"image,caption\na.jpg,{long}\nb.jpg,x\0y\n"))
    assert contents(source) == {"a.jpg": (long.strip(),), "b.jpg": ("x\0y",)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "url,caption\nx,y\n", r"column of files \(image, .* found \['url', 'caption'\]"),
        ("t.tsv", "x\ty\n", "two columns without names"),
        ("t.csv", "a.jpg,b.jpg\n", "two columns without names"),
        ("t.jsonl", '{"url": 1}', r"found \['url'\]"),
        ("t.doc", "a.jpg,one", r"ends in \.csv, \.tsv, \.txt or \.jsonl, found '\.doc'"),
    ],
)
def test_a_table_with_unknown_columns_is_refused_with_its_columns(folder, name, text, message):
    with pytest.raises(ValueError, match=message):
        CaptionTableSource(table(folder, text, name))
    with pytest.raises(FileNotFoundError, match="expected a table"):
        CaptionTableSource(folder / "nowhere.csv")


@pytest.mark.property
@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(["t.csv", "t.tsv", "t.jsonl"]),
    junk=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=4),
)
def test_valid_rows_between_any_other_rows_are_read(name, junk):
    separator = b"\t" if name.endswith("tsv") else b","
    rows = [separator.join([f"{i}.jpg".encode(), f"caption {i}".encode()]) for i in range(3)]
    if name.endswith("jsonl"):
        rows = [b'{"image": "%d.jpg", "caption": "caption %d"}' % (i, i) for i in range(3)]
    lines = [rows[0], *junk, rows[1], rows[2]]
    if not name.endswith("jsonl"):
        lines.insert(0, separator.join([b"image", b"caption"]))
    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            (Path(folder) / f"{i}.jpg").write_bytes(b"image")
        path = Path(folder) / name
        path.write_bytes(b"\n".join(lines))
        captions = contents(CaptionTableSource(path, max_skipped_fraction=1.0))
    for i in range(3):
        assert f"caption {i}" in captions[f"{i}.jpg"]


@pytest.mark.parametrize(
    "first",
    [
        '{"imag\\u0001": "a.jpg", "caption": "one"}',
        '{"image": "a.jpg", "text": "one"}',
        '{"path": "a.jpg", "caption": "one"}',
        '{"caption": "a.jpg", "image": ["one"]}',
        '{"x": 1}',
        "{}",
    ],
)
def test_a_damaged_first_json_line_does_not_choose_the_keys(folder, first):
    """A campaign of mutated records found tables that were refused for it."""
    good = '{"image": "b.jpg", "caption": "two"}\n' * 2
    source = CaptionTableSource(
        table(folder, first + "\n" + good, "t.jsonl"), max_skipped_fraction=0.5
    )
    assert source[0].captions == ("two", "two") and len(source) == 1
