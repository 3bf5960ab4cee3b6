import concurrent.futures
import io
import json
import os
import pickle
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip_jax.data.sources import webdataset
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.data.sources.tar_members import read_members
from regionclip_jax.data.sources.webdataset import WebDatasetSource


def write(path, files, tar_format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def sample(key, ending="jpg"):
    return [(f"{key}.{ending}", f"image {key}".encode()), (f"{key}.txt", f"é {key}".encode())]


def records(source):
    return [source[i] for i in range(len(source))]


def test_samples_are_in_the_order_of_their_shards(tmp_path):
    write(tmp_path / "00001.tar", [*sample("b1", "PNG"), *sample("b2", "webp")])
    write(tmp_path / "00000.tar", [*sample("a1"), ("a1.npy", b"other"), *sample("a2", "jpeg")])
    (tmp_path / "00000.parquet").write_bytes(b"")
    source = WebDatasetSource(tmp_path)
    assert [r.key for r in records(source)] == ["a1", "a2", "b1", "b2"]
    assert source[2].image == b"image b1" and source[2].captions == ("é b1",)
    assert source.report == {"shards": 2, "samples": 4} and source.sizes() is None
    with pytest.raises(IndexError):
        _ = source[4]
    assert [r.key for r in records(WebDatasetSource(tmp_path / "00001.tar"))] == ["b1", "b2"]


def test_a_caption_is_read_from_the_text_or_else_from_the_json(tmp_path):
    both = [*sample("a"), ("a.json", b'{"caption": "other"}')]
    alone = [("b.jpg", b"image b"), ("b.json", json.dumps({"caption": "ü b"}).encode())]
    write(tmp_path / "0.tar", [*both, *alone])
    assert [r.captions for r in records(WebDatasetSource(tmp_path))] == [("é a",), ("ü b",)]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_members_equal_those_of_the_standard_library(tmp_path, tar_format):
    folder = "folder" * 12
    files = [(f"{folder}/{'n' * 60}{i}.jpg", bytes(i * 300)) for i in range(5)]
    files += [("é.txt", b"x"), ("plain", b"")]
    path = tmp_path / "0.tar"
    write(path, files, tar_format)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar]
    members, problem = read_members(path)
    assert [tuple(member) for member in members] == expected and problem is None


def test_threads_and_copies_read_the_same_records(tmp_path):
    for shard in range(3):
        write(tmp_path / f"{shard}.tar", [f for i in range(20) for f in sample(f"{shard}-{i}")])
    source = WebDatasetSource(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) == f"WebDatasetSource({str(tmp_path)!r})"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.__getitem__, range(60))) == records(source)


def test_a_truncated_shard_is_named_and_its_complete_samples_are_read(tmp_path):
    write(tmp_path / "0.tar", sample("a"))
    write(tmp_path / "1.tar", [*sample("b"), *sample("c")])
    data = (tmp_path / "1.tar").read_bytes()
    # The cut is in the text of c, after its image.
    (tmp_path / "1.tar").write_bytes(data[: 7 * 512 + 3])
    with pytest.raises(ValueError, match=r"1 of 2 shards are cut .*1\.tar ends at byte 3587"):
        WebDatasetSource(tmp_path, max_skipped_fraction=0.4)
    source = WebDatasetSource(tmp_path, max_skipped_fraction=0.5)
    assert [r.key for r in records(source)] == ["a", "b"]
    assert source.report["shards_cut_short"] == 1 and "1.tar" in source.named["shards_cut_short"][0]
    # The text of image c is after the cut.
    assert source.report["samples_without_caption"] == 1


def test_incomplete_samples_and_duplicate_files_are_counted(tmp_path):
    lone = [("x.jpg", b"image"), ("y.txt", b"text")]
    double = [("a.jpg", b"another"), ("b.png", b"another")]
    good = [file for key in "abcdef" for file in sample(key)]
    write(tmp_path / "0.tar", [*good, *lone, *double])
    with pytest.raises(ValueError, match=r"2 of 8 samples .* caption 1 \(0\.tar: x\)"):
        WebDatasetSource(tmp_path, max_skipped_fraction=0.2)
    with pytest.raises(ValueError, match=r"2 of 14 files .* twice 2 \(0\.tar: a\.jpg, 0\.tar: b"):
        write(tmp_path / "0.tar", [*good, *double])
        WebDatasetSource(tmp_path, max_skipped_fraction=0.1)
    source = WebDatasetSource(tmp_path, max_skipped_fraction=0.2)
    assert source[0].image == b"image a" and source.report["files_there_twice"] == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff", "caption cannot be read"),
        ("a.json", b"{", "caption cannot be read"),
        ("a.json", b"[" * 9999, "caption cannot be read"),
        ("a.json", b"[]", "expected a text as caption, found None"),
        ("a.json", b'{"caption": null}', "found None"),
        ("a.json", b'{"caption": 7}', "found 7"),
    ],
)
def test_an_unreadable_caption_is_a_record_error(tmp_path, name, content, message):
    write(tmp_path / "0.tar", [("a.jpg", b"image"), (name, content), *sample("b")])
    source = WebDatasetSource(tmp_path)
    with pytest.raises(RecordError, match=rf"record 0\.tar: a: .*{message}"):
        _ = source[0]
    assert source[1].captions == ("é b",)


def test_a_shard_truncated_or_deleted_after_opening_is_a_record_error(tmp_path):
    write(tmp_path / "0.tar", sample("a"))
    source = WebDatasetSource(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"short")
    with pytest.raises(RecordError, match="shorter than at the start"):
        _ = source[0]
    (tmp_path / "0.tar").unlink()
    with pytest.raises(RecordError, match="cannot be read"):
        _ = source[0]


def test_a_folder_without_shards_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.tar"):
        with pytest.raises(FileNotFoundError, match="has no shard: expected"):
            WebDatasetSource(path)


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_samples_before_the_damage_of_a_shard_are_read(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.tar"
        write(path, [file for key in "abcd" for file in sample(key)], tarfile.PAX_FORMAT)
        good = bytearray(path.read_bytes())
        before = [WebDatasetSource(path)[i] for i in range(4)]
        offsets = st.integers(0, 16 * 512 - 1)
        changes = data.draw(st.dictionaries(offsets, st.integers(0, 255), min_size=1, max_size=6))
        for offset, value in changes.items():
            good[offset] = value
        path.write_bytes(good[: data.draw(st.integers(min(changes) + 1, len(good)))])
        try:
            source = WebDatasetSource(path, max_skipped_fraction=1.0)
        except ValueError:
            # No sample is complete, so the damage is in the first one.
            assert min(changes) < 4 * 512
            return
        read = {}
        for index in range(len(source)):
            try:
                record = source[index]
            except RecordError:
                continue
            read[record.key] = record
        # A sample has four blocks: two headers, an image and a text.
        for record in before[: min(changes) // (4 * 512)]:
            assert read[record.key] == record


def test_claims_of_members_are_bounded(tmp_path):
    """A sparse file, links and absolute names: only bytes that are in the tar are read."""
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in (
            ("a.jpg", tarfile.GNUTYPE_SPARSE), ("b.jpg", tarfile.SYMTYPE),
            ("c.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.FIFOTYPE), ("e.jpg", tarfile.CHRTYPE),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in ("/etc/f.jpg", "/etc/f.txt", "../../g.jpg", "../../g.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"words"))
    source = WebDatasetSource(tmp_path)
    assert [(r.key, r.image) for r in records(source)] == [
        ("/etc/f", b"words"), ("../../g", b"words"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"9" * 5000 + b" size=1\n",
        b"5 a=\n" * 200_000,
        b"19 size=" + b"9" * 10 + b"\n",
        b"30 size=-5\n",
        b" " * 10**6,
        b"1" * 10**6,
    ],
    ids=["length", "many", "size", "negative", "blanks", "digits"],
)
def test_damaged_extended_headers_end_or_are_ignored(tmp_path, content):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        header = tarfile.TarInfo("header")
        header.type, header.size = tarfile.XHDTYPE, len(content)
        tar.addfile(header, io.BytesIO(content))
        for name in ("a.jpg", "a.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"words"))
    members, _ = read_members(tmp_path / "0.tar")
    assert [member.name for member in members] in ([], ["a.jpg", "a.txt"])


def test_far_too_long_members_are_record_errors(tmp_path, monkeypatch):
    write(tmp_path / "0.tar", [*sample("a"), *sample("b"), ("c.jpg", b"c"), ("c.txt", b"c" * 99)])
    monkeypatch.setattr(webdataset, "MOST_BYTES", 5)
    monkeypatch.setattr(webdataset, "LONGEST_LINE", 50)
    source = WebDatasetSource(tmp_path)
    for index in range(3):
        with pytest.raises(RecordError, match="expected at most 5 and 50"):
            source[index]
    os.mkfifo(tmp_path / "1.tar")
    with pytest.raises(FileNotFoundError, match="expected a regular file"):
        WebDatasetSource(tmp_path)
