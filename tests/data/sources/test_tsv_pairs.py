import base64
import json
import os
import pickle
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip_jax.data.sources import tsv_pairs
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.data.sources.text_tables import LONGEST_LINE
from regionclip_jax.data.sources.tsv_pairs import TsvPairsSource, decode_text


def write(path, rows, lineidx=False):
    lines = [f"{key}\t{content}\n".encode() for key, content in rows]
    path.write_bytes(b"".join(lines))
    if lineidx:
        starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
        path.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))


def write_pair(folder, number, count, names=("images", "text"), lineidx=False):
    keys = [f"{number}-{i}" for i in range(count)]
    images = [(key, base64.b64encode(key.encode()).decode()) for key in keys]
    texts = [(key, json.dumps({"captions": [f"caption é {key}"]})) for key in keys]
    write(folder / f"{names[0]}{number}.tsv", images, lineidx)
    write(folder / f"{names[1]}{number}.tsv", texts, lineidx)


@pytest.mark.parametrize("lineidx", [False, True])
@pytest.mark.parametrize("names", [("images", "text"), ("my_image", "my_text"), ("img", "caption")])
def test_pairs_of_a_folder_are_read_in_order_of_their_names(tmp_path, names, lineidx):
    write_pair(tmp_path, 2, 3, names, lineidx)
    write_pair(tmp_path, 1, 2, names, lineidx)
    source = TsvPairsSource(tmp_path)
    keys = ["1-0", "1-1", "2-0", "2-1", "2-2"]
    assert [source[i].key for i in range(len(source))] == keys
    assert [source[i].image for i in range(5)] == [key.encode() for key in keys]
    assert source[3].captions == ("caption é 2-1",)
    with pytest.raises(IndexError):
        _ = source[5]


def test_one_file_is_enough_and_the_source_can_be_pickled(tmp_path):
    write_pair(tmp_path, 1, 2)
    write_pair(tmp_path, 2, 2)
    source = TsvPairsSource(tmp_path / "images2.tsv")
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 2 and copy[1] == source[1] and repr(copy) == repr(source)


def test_a_list_of_rows_selects_them_in_ascending_order(tmp_path):
    write_pair(tmp_path, 1, 4)
    for name in ("images1", "text1"):
        (tmp_path / f"{name}.linelist").write_text("3\n1\n")
    source = TsvPairsSource(tmp_path)
    assert [source[i].key for i in range(len(source))] == ["1-1", "1-3"]
    (tmp_path / "images1.linelist").write_text("4\n")
    with pytest.raises(ValueError, match=r"images1\.linelist names rows 4 to 4"):
        TsvPairsSource(tmp_path)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("a plain caption", (("a plain caption",), ())),
        ("123", (("123",), ())),
        ('{"captions": ["a", "b", "c", "d", "e", "f"]}', (tuple("abcde"), ())),
        ('{"captions": "a whole caption"}', (("a whole caption",), ())),
        ('{"captions": ["a"], "tags": "red  dog"}', (("a",), ("red", "dog"))),
        ('{"tags": ["red", "dog"]}', ((), ("red", "dog"))),
        ('{"captions": null, "url": "x"}', ((), ())),
        ('{"captions": [null, "a", 7], "tags": [null, "b"]}', (("a",), ("b",))),
        ("[" * 9999, (("[" * 9999,), ())),
        ("", (("",), ())),
    ],
)
def test_a_text_column_is_read_in_every_known_format(field, expected):
    assert decode_text(field) == expected


def test_different_keys_and_invalid_rows_are_record_errors(tmp_path):
    write(tmp_path / "images.tsv", [("a", "AAAA"), ("b", "AAAA"), ("c", "A")])
    write(tmp_path / "text.tsv", [("a", "x"), ("other", "x"), ("c", "x")])
    source = TsvPairsSource(tmp_path)
    assert source[0].image == b"\0\0\0"
    with pytest.raises(RecordError, match="record b: row 1 of text.tsv has another key, other"):
        _ = source[1]
    with pytest.raises(RecordError, match="record c: .*base64"):
        _ = source[2]
    write(tmp_path / "images.tsv", [("a", "AA*AA"), ("b", "AAAA"), ("c", "AAAA")])
    with pytest.raises(RecordError, match="record a: .*base64"):
        _ = TsvPairsSource(tmp_path)[0]
    (tmp_path / "text.tsv").write_bytes(b"a\nb\t\xff\nc\tx\n")
    source = TsvPairsSource(tmp_path)
    with pytest.raises(RecordError, match="text.tsv row 0: has 1 column"):
        _ = source[0]
    with pytest.raises(RecordError, match="text.tsv row 1: is not UTF-8"):
        _ = source[1]


def test_files_without_a_pair_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image file"):
        TsvPairsSource(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        TsvPairsSource(tmp_path / "nowhere")
    write(tmp_path / "images.tsv", [("a", "AAAA"), ("b", "AAAA")])
    with pytest.raises(FileNotFoundError, match=r"images\.tsv has no text file text\.tsv"):
        TsvPairsSource(tmp_path)
    write(tmp_path / "text.tsv", [("a", "x")])
    with pytest.raises(ValueError, match=r"images\.tsv has 2 rows but .*text\.tsv has 1"):
        TsvPairsSource(tmp_path)


@pytest.mark.parametrize("offsets", ["0\n900\n", "1\n9\n", "9\n0\n", "0\nx\n"])
def test_offsets_that_do_not_fit_their_file_are_refused(tmp_path, offsets):
    write_pair(tmp_path, 1, 2)
    (tmp_path / "images1.lineidx").write_text(offsets)
    with pytest.raises(ValueError, match=r"images1\.lineidx"):
        TsvPairsSource(tmp_path)


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(field=st.text() | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["captions", "tags", "x"]), inner, max_size=3),
    max_leaves=8,
).map(json.dumps))  # fmt: skip
def test_any_text_column_gives_captions_and_tags_of_text(field):
    captions, tags = decode_text(field)
    assert len(captions) <= 5 and all(isinstance(text, str) for text in (*captions, *tags))


@pytest.mark.property
@settings(max_examples=100, deadline=None)
@given(
    junk=st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")),
    in_images=st.booleans(),
    row=st.integers(0, 3),
)
def test_an_invalid_row_does_not_affect_other_rows(junk, in_images, row):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_pair(folder, 1, 4)
        path = folder / ("images1.tsv" if in_images else "text1.tsv")
        lines = path.read_bytes().splitlines()
        lines[row] = junk
        path.write_bytes(b"\n".join(lines) + b"\n")
        source = TsvPairsSource(folder)
        for index in range(4):
            try:
                record = source[index]
            except RecordError:
                assert index == row
                continue
            if index != row:
                assert (record.key, record.image) == (f"1-{index}", f"1-{index}".encode())


def test_a_row_of_any_length_is_a_record_error_and_the_others_are_read(tmp_path, monkeypatch):
    image = base64.b64encode(b"image").decode()
    (tmp_path / "images.tsv").write_text("".join(f"k{i}\t{image}\n" for i in range(4)))
    with open(tmp_path / "text.tsv", "wb") as file:
        file.write(b"k0\ta cat\n")
        file.seek(LONGEST_LINE + 1, os.SEEK_CUR)  # NULs
        file.write(b"\nk2\t" + b"\t" * 1000 + b"\nk3\ta dog")
    monkeypatch.setattr(tsv_pairs, "_CHUNK", 2**16 + 1)  # so that rows begin anywhere in a chunk
    source = TsvPairsSource(tmp_path)
    assert [source[i].captions for i in (0, 2, 3)] == [("a cat",), ("",), ("a dog",)]
    with pytest.raises(RecordError, match=f"bytes, expected at most {LONGEST_LINE}"):
        source[1]


@pytest.mark.parametrize("numbers", [b"0\n99999999999999999999999", b"0\nx", b"\xff", b"0 1.5"])
def test_damaged_offsets_are_refused(tmp_path, numbers):
    (tmp_path / "images.tsv").write_text("k\tx\nk\ty\n")
    (tmp_path / "text.tsv").write_text("k\tx\nk\ty\n")
    (tmp_path / "images.lineidx").write_bytes(numbers)
    with pytest.raises(ValueError, match=r"images\.lineidx: expected one whole number a line"):
        TsvPairsSource(tmp_path)
