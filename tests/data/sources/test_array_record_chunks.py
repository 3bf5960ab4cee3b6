import os
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hypothesis import given

from regionclip_jax.data.sources.array_record_chunks import ChunkBounds, Part


def write(path, records, options) -> str:
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


@pytest.mark.parametrize(
    "options",
    ["group_size:1,uncompressed", "group_size:3,uncompressed", "group_size:1", "group_size:5"],
)
def test_chunks_of_written_files_are_accepted(tmp_path, options):
    # Records and the footer of several blocks; and a file without records.
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(0, 200_000, 20), 0, 65_536 - 64, *[3] * 9_000]
    many = write(tmp_path / "many", [rng.bytes(size) for size in sizes], options)
    write(tmp_path / "none", [], options)
    bounds = ChunkBounds([Part(many, 5, 2), Part(tmp_path / "none"), Part(many, 9_000)])
    bounds = pickle.loads(pickle.dumps(bounds))
    for index in (0, 1, 2, 23):
        bounds.require(index)
    with pytest.raises(IndexError):
        bounds.require(2 + len(sizes) - 9_000)


@pytest.mark.parametrize("group", [1, 2])
def test_a_chunk_that_unpacks_to_more_than_its_file_allows_is_refused(tmp_path, group):
    records = [b"small", b"s", bytes(64 * 2**20), b"s"]
    path = write(tmp_path / "file", records, f"group_size:{group}")
    assert os.path.getsize(path) < 2**18
    bounds = ChunkBounds([Part(path)])
    bounds.require(0)
    bounds.require(1)
    with pytest.raises(ValueError, match=r"file: at \d+: a chunk of . records that unpacks to 6"):
        bounds.require(2)


def test_other_chunks_and_compressions_are_refused(tmp_path):
    transposed = write(tmp_path / "transposed", [b"a"] * 9, "group_size:3,transpose,uncompressed")
    with pytest.raises(ValueError, match="transposed: at 64: no chunk of plain records"):
        ChunkBounds([Part(transposed)]).require(0)
    brotli = write(tmp_path / "brotli", [b"a"] * 9, "group_size:3,brotli:1")
    with pytest.raises(ValueError, match="compression 'b', expected none or Zstandard"):
        ChunkBounds([Part(brotli)])


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chunks")
    records = [b"a" * 500, b"bc" * 40_000, b"", b"d"]
    return [
        write(folder / options, records, options)
        for options in ("group_size:1,uncompressed", "group_size:2")
    ]


@pytest.mark.property
@given(data=st.data())
def test_a_changed_file_is_accepted_or_refused_with_its_name(small_files, tmp_path_factory, data):
    content = bytearray(open(data.draw(st.sampled_from(small_files)), "rb").read())
    for _ in range(20):
        # Most bytes of the last blocks are padding.
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(1, 400).map(lambda n: -n))
        content[place] = data.draw(st.integers(0, 255))
        start = len(content) - 2**16 + data.draw(st.integers(0, 200))
        content[start] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("changed") / "file"
    path.write_bytes(content)
    try:
        bounds = ChunkBounds([Part(path)])
        for index in range(4):
            bounds.require(index)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_a_cut_file_is_refused(small_files, tmp_path):
    with open(small_files[0], "rb") as file:
        content = file.read()
    for length in (0, 100, 2**16, len(content) - 1, len(content) - 2**16):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut: expected an ArrayRecord file"):
            ChunkBounds([Part(tmp_path / "cut")])


def test_records_that_a_file_does_not_have_are_refused(small_files):
    for path in small_files:
        assert ArrayRecordReader(path).num_records() == 4
        bounds = ChunkBounds([Part(path, 2, 3)])
        bounds.require(1)
        with pytest.raises(ValueError, match="no chunk for record 4"):
            bounds.require(2)
