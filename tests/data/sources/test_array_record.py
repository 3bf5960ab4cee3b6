import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from regionclip_jax.data.prepare.verification import find_damage
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.array_record_format import encode_record, write_manifest
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord, RecordError


def text_records(count):
    return [ImageTextRecord(f"k{i}", bytes([i]), (f"caption {i}",)) for i in range(count)]


def test_written_records_are_read_from_several_shards(tmp_path):
    records = text_records(7)
    manifest = write_array_record(iter(records), tmp_path / "deep" / "set", 3, {"seed": 1})
    assert [shard["count"] for shard in manifest["shards"]] == [3, 3, 1]
    source = ArrayRecordSource(tmp_path / "deep" / "set")
    assert [source[i] for i in range(len(source))] == records
    assert source.kind == "image_text" and source.description == {"seed": 1}


def test_detection_records_are_read_with_their_category_names(tmp_path):
    box = np.array([[1, 2, 3, 4]], np.float32)
    record = DetectionRecord("k", b"x", box, np.array([1], np.int32), np.array([True]), 5)
    write_array_record([record], tmp_path / "set", 3, {"category_names": ["cat", "dog"]})
    source = ArrayRecordSource(tmp_path / "set")
    assert source.kind == "detection" and source.category_names == ("cat", "dog")
    np.testing.assert_array_equal(source[0].boxes, box)
    assert source[0].crowd[0] and source[0].image_id == 5


def test_a_record_without_a_size_has_that_of_its_directory(tmp_path):
    # Directories were prepared like this before records had sizes.
    records = [*text_records(1), dataclasses.replace(text_records(1)[0], size=(7, 8))]
    write_array_record(records, tmp_path / "set", 3, {})
    assert [ArrayRecordSource(tmp_path / "set")[i].size for i in range(2)] == [None, (7, 8)]
    np.save(tmp_path / "set" / "sizes.npy", np.array([[5, 6], [7, 8]], np.int32))
    (tmp_path / "set" / "digests.json").unlink()
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sizes": {"name": "sizes.npy"}}))
    assert [ArrayRecordSource(tmp_path / "set")[i].size for i in range(2)] == [(5, 6), (7, 8)]


def test_a_record_that_unpacks_to_more_than_its_file_allows_is_refused_unread(tmp_path):
    folder = tmp_path / "set"
    write_array_record(text_records(2), folder, 3, {})
    (shard,) = folder.glob("*.arrayrecord")
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    writer.write(encode_record(text_records(1)[0]))
    writer.write(bytes(64 * 2**20))
    writer.close()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["bytes"] = shard.stat().st_size
    (folder / "digests.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    source = ArrayRecordSource(folder)
    assert source[0] == text_records(1)[0]
    with pytest.raises(RecordError, match="#1.*a chunk of 1 records that unpacks to 67108864"):
        source[1]


def test_a_source_can_be_pickled_and_has_a_stable_repr(tmp_path):
    write_array_record(text_records(4), tmp_path / "set", 2, {})
    source = ArrayRecordSource(tmp_path / "set")
    _ = source[3]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == source[3]
    assert repr(copy) == repr(source) == f"ArrayRecordSource({str(tmp_path / 'set')!r})"


def test_a_complete_directory_with_the_same_description_is_kept(tmp_path):
    first = write_array_record(text_records(4), tmp_path / "set", 2, {"seed": 1})
    untouched = iter(text_records(9))
    assert write_array_record(untouched, tmp_path / "set", 2, {"seed": 1}) == first
    assert next(untouched).key == "k0"


def test_a_directory_with_another_description_is_refused_with_the_difference(tmp_path):
    write_array_record(text_records(4), tmp_path / "set", 2, {"seed": 1, "count": 4})
    with pytest.raises(FileExistsError, match="differing in seed"):
        write_array_record(text_records(4), tmp_path / "set", 2, {"seed": 2, "count": 4})


def test_a_directory_without_a_data_set_is_not_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no complete data set"):
        write_array_record(text_records(1), tmp_path / "set", 2, {})
    assert (tmp_path / "set" / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_write_leaves_no_files(tmp_path):
    def broken():
        yield from text_records(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_array_record(broken(), tmp_path / "set", 2, {})
    assert list(tmp_path.iterdir()) == []


def test_no_records_two_record_types_and_empty_shards_are_refused(tmp_path):
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    mixed = [*text_records(1), DetectionRecord("d", b"", *empty, 1)]
    with pytest.raises(ValueError, match="no records"):
        write_array_record([], tmp_path / "set", 2, {})
    with pytest.raises(ValueError, match="record d is of another kind"):
        write_array_record(mixed, tmp_path / "set", 2, {})
    with pytest.raises(ValueError, match="shard_size"):
        write_array_record(mixed, tmp_path / "set", 0, {})
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_named_when_the_source_is_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="set does not exist"):
        ArrayRecordSource(tmp_path / "set")
    (tmp_path / "set").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        ArrayRecordSource(tmp_path / "set")
    (tmp_path / "set").rmdir()
    write_array_record(text_records(4), tmp_path / "set", 2, {})
    (tmp_path / "set" / "shard-00001.arrayrecord").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.arrayrecord"):
        ArrayRecordSource(tmp_path / "set")


def test_a_manifest_that_contradicts_its_shards_is_refused(tmp_path):
    manifest = write_array_record(text_records(4), tmp_path / "set", 2, {})
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(manifest | {"count": 5}))
    with pytest.raises(
        ValueError, match=r"manifest\.json: .* expected .*write the directory again"
    ):
        ArrayRecordSource(tmp_path / "set")
    (tmp_path / "set" / "digests.json").unlink()  # as in directories of versions up to 0.2.0
    with pytest.raises(ValueError, match="counts 5 records, the shards hold 4"):
        ArrayRecordSource(tmp_path / "set")
    path.write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ValueError, match="format 1"):
        ArrayRecordSource(tmp_path / "set")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no shard"])
def test_a_truncated_shard_is_named_with_the_remedy(tmp_path, damage):
    write_array_record(text_records(4), tmp_path / "set", 2, {})
    shard = tmp_path / "set" / "shard-00001.arrayrecord"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ValueError, match=r"shard-00001\.arrayrecord: expected .*copy it again"):
        ArrayRecordSource(tmp_path / "set")


def test_a_corrupt_record_is_a_record_error_and_the_others_are_read(tmp_path):
    records = [ImageTextRecord(f"k{i}", bytes(5000), (f"caption {i}",)) for i in range(4)]
    write_array_record(records, tmp_path / "set", 4, {})
    shard = tmp_path / "set" / "shard-00000.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[data.index(b"caption 1")] ^= 1
    shard.write_bytes(data)
    source = ArrayRecordSource(tmp_path / "set")
    with pytest.raises(RecordError, match=r"record #1: .*[Cc]orrupted"):
        source[1]
    assert [source[i] for i in (0, 2, 3)] == [records[i] for i in (0, 2, 3)]


def test_boxes_of_a_directory_of_captions_are_refused(tmp_path):
    write_array_record(text_records(3), tmp_path / "captions", 2, {})
    source = ArrayRecordSource(tmp_path / "captions")
    with pytest.raises(RecordError, match="#1: has captions, expected boxes"):
        source.annotations(1)


def test_records_of_another_kind_or_an_unknown_class_are_record_errors(tmp_path):
    box = np.array([[1, 2, 3, 4]], np.float32)
    for number in (-1, 0, 1, 2, 2**31 - 1):
        record = DetectionRecord("k", b"x", box, np.array([number], np.int32), np.array([True]), 5)
        folder = tmp_path / str(number)
        manifest = write_array_record([record], folder, 3, {"category_names": ["cat", "dog"]})
        if number in (0, 1):
            assert ArrayRecordSource(folder)[0].classes.tolist() == [number]
            continue
        for read in (ArrayRecordSource(folder).__getitem__, ArrayRecordSource(folder).annotations):
            with pytest.raises(RecordError, match=f"has classes {number} to {number} of 2"):
                read(0)
    manifest["kind"] = "image_text"
    write_manifest(folder, manifest)
    with pytest.raises(RecordError, match="is a record of detection, expected image_text"):
        ArrayRecordSource(folder)[0]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"7", b"[" * 10**5, b"\xff\xfe{", b"{", b"NaN",
        {"kind": "other"}, {"kind": 7}, {"kind": []}, {"count": "4"}, {"count": -1},
        {"count": float("nan")}, {"count": 2**64}, {"description": []}, {"description": None},
        {"description": {"category_names": 7}}, {"description": {"category_names": [7, None]}},
        {"description": {"category_names": ["a", "a"]}}, {"shards": None}, {"shards": {}},
        {"shards": [7]}, {"shards": [{}]}, {"shards": [{"name": 7}]}, {"sizes": 7}, {"sizes": [1]},
        {"shards": [{"name": "../set/shard-00000.arrayrecord"}]}, {"shards": [{"name": "a\0b"}]},
        {"shards": [{"name": "/dev/zero"}]}, {"shards": [{"name": ""}]}, {"sizes": {"name": {}}},
    ],
    ids=lambda content: str(content)[:40],
)  # fmt: skip
def test_a_damaged_manifest_is_refused_in_one_line(tmp_path, content):
    manifest = write_array_record(text_records(4), tmp_path / "set", 4, {})
    path = tmp_path / "set" / "manifest.json"
    if isinstance(content, dict):
        content = json.dumps(manifest | content).encode()
    path.write_bytes(content)
    (tmp_path / "set" / "digests.json").unlink()
    for read in (ArrayRecordSource, lambda folder: find_damage(folder, 1)):
        with pytest.raises(ValueError, match=r"manifest\.json") as error:
            read(tmp_path / "set")
        assert "\n" not in str(error.value)


def test_damaged_sizes_are_refused_in_one_line(tmp_path):
    manifest = write_array_record(text_records(2), tmp_path / "set", 4, {})
    manifest["sizes"] = {"name": "sizes.npy"}
    write_manifest(tmp_path / "set", manifest)
    path = tmp_path / "set" / "sizes.npy"
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"descr": "<i8", "fortran_order": False, "shape": (2, 2**50)}
    )
    zipped = io.BytesIO()
    np.savez(zipped, np.ones((2, 2)))
    for array in (
        np.ones(2, int), np.ones((2, 2)), np.array([[1, 2], [3, 0]]),
        np.array([[1, 2], [3, 2**40]]),
        np.array([[1, 2], [3, None]]), b"", b"text", huge.getvalue(), zipped.getvalue(),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    ):  # fmt: skip
        if isinstance(array, bytes):
            path.write_bytes(array)
        else:
            np.save(path, array, allow_pickle=True)
        with pytest.raises(ValueError, match=r"sizes\.npy: expected") as error:
            ArrayRecordSource(tmp_path / "set")
        assert "\n" not in str(error.value)
    np.save(path, np.array([[5, 6], [7, 8]]))
    assert ArrayRecordSource(tmp_path / "set").sizes().tolist() == [[5, 6], [7, 8]]
