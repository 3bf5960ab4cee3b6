"""Archives and headers that state other sizes, names or numbers than they can have."""

import json
import os
import struct
import warnings
import zipfile

import numpy as np
import pytest

from checkpoints import write_safetensors
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.architecture import infer_config
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.conversion.convert_clip import convert_checkpoint

ZEROS = bytes(2**25)


def program(num_elements: int, shape: str = "(I2\nI2\nt", strides: str = "(I2\nI1\nt") -> bytes:
    """Return the opcodes of a dict with one tensor of storage '0'."""
    return (
        "}Va\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n"
        f"I{num_elements}\ntQI0\n{shape}{strides}I00\nccollections\nOrderedDict\n)RtRs."
    ).encode()


def write_zip(path, entries: list, compression: int = zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in entries:
            archive.writestr(f"archive/{name}", content)
    return path


GOOD = [("data.pkl", b"\x80\x02" + program(4)), ("data/0", bytes(16))]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_archives_are_read(tmp_path, compression):
    tensors = read_tensors(write_zip(tmp_path / "a.pt", GOOD, compression))
    np.testing.assert_array_equal(tensors["a"], np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([GOOD[0], ("data/0", ZEROS)], "unpacks to at most 1[0-9,]+ bytes, found .* 33,"),
        ([("data.pkl", b"\x80\x02" + b"N0" * 2**24 + b"N."), GOOD[1]], "unpacks to at most"),
        ([*GOOD, ("byteorder", b"l" * 2**25)], "unpacks to at most"),
        ([*GOOD, ("unused", ZEROS)], "unpacks to at most"),
        ([GOOD[0], ("data/0", bytes(17))], "data/0: expected 16 bytes of data, found 17"),
        ([GOOD[0], ("data/1", bytes(16))], "data/0: expected 16 bytes of data, found None"),
        ([*GOOD, GOOD[1]], "entry 'archive/data/0' of the archive occurs more than once"),
        ([*GOOD, GOOD[0]], "entry 'archive/data.pkl' of the archive occurs more than once"),
    ],
)
def test_entries_of_other_sizes_or_equal_names_are_refused(tmp_path, entries, message):
    path = write_zip(tmp_path / "a.pt", entries)
    with pytest.raises(CheckpointMismatch, match=rf"a\.pt: .*{message}"):
        read_tensors(path)


def test_a_storage_is_not_unpacked_before_its_size_is_compared(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.pt", [GOOD[0], ("data/0", bytes(10**6))])
    opened, whole = [], zipfile.ZipFile.open

    def open_and_note(archive, name, *arguments, **options):
        opened.append(name)
        return whole(archive, name, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", open_and_note)
    with pytest.raises(CheckpointMismatch, match="expected 16 bytes of data, found 1000000"):
        read_tensors(path)
    assert opened == ["archive/data.pkl"]


def test_an_encrypted_entry_and_other_compressions_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.pt", GOOD, zipfile.ZIP_LZMA)
    with pytest.raises(CheckpointMismatch, match="'archive/data.pkl' .* compression method 14"):
        read_tensors(path)
    content = bytearray(write_zip(path, GOOD).read_bytes())
    # The flags of the first entry of the directory.
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="'archive/data.pkl' of the archive is encrypted"):
        read_tensors(path)


def test_tensors_that_repeat_the_numbers_of_a_small_file_are_refused(tmp_path):
    content = b"\x80\x02" + program(4, f"(I{2**40}\nt", "(I0\nt")
    path = write_zip(tmp_path / "a.pt", [("data.pkl", content), GOOD[1]])
    with pytest.raises(CheckpointMismatch, match="found 4,398,046,511,104, which repeat"):
        read_tensors(path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (f'{{"w": {json.dumps(ENTRY)}, "w": {json.dumps(ENTRY)}}}', "the key 'w' occurs more than"),
        ('{"w": {"dtype": "F32", "dtype": "F32"}}', "the key 'dtype' occurs more than once"),
        ({"a": ENTRY, "b": ENTRY}, "tensors 'a' and 'b' overlap"),
        ({"a": ENTRY | {"shape": [True, 2]}}, "'a' has the header entry"),
        ({"a": ENTRY | {"shape": [2**70]}}, "'a' has the header entry"),
        ({"a": ENTRY | {"shape": [1] * 65}}, "'a' has the header entry"),
        ({"a": ENTRY | {"shape": "2"}}, "'a' has the header entry"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, "'a' has the header entry"),
        ({"a": ENTRY | {"data_offsets": "08"}}, "'a' has the header entry"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": ' + "[" * 100_000, "recursion"),
        ("{" + " " * 2**24, "its header claims"),
    ],
)
def test_other_headers_of_safetensors_are_refused_in_one_line(tmp_path, header, message):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(CheckpointMismatch, match=rf"a\.safetensors: .*{message}") as error:
        read_tensors(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize(
    "name",
    [
        "transformer.resblocks.39999.ln_1.weight",
        f"transformer.resblocks.{'9' * 5000}.ln_1.weight",
        "transformer.resblocks.01.ln_1.weight",
        "visual.layer1.39999.conv1.weight",
    ],
)
def test_a_number_of_a_block_without_those_before_it_is_refused(
    tmp_path, clip_tensors, write_safetensors, name
):
    path = write_safetensors(clip_tensors("nano_clip") | {name: np.zeros(2, np.float32)})
    with pytest.raises(CheckpointMismatch, match=r"expected blocks numbered from 0 to .*, found"):
        convert_checkpoint(path, tmp_path / "model")


def test_more_blocks_than_any_model_has_are_refused(tmp_path, clip_tensors):
    names = {f"transformer.resblocks.{k}.ln_1.weight": np.zeros(2, np.float32) for k in range(100)}
    path = write_safetensors(tmp_path / "a.pth", names)
    tensors = clip_tensors("nano_clip") | dict(read_tensors(path))
    with pytest.raises(CheckpointMismatch, match=r"text\.layers: expected .* to 80 .*, found 100"):
        infer_config(tensors, "a.pth")


def test_a_pipe_in_place_of_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match=r"a\.pt is a .*pipe.* expected a regular file"):
        read_tensors(tmp_path / "a.pt")
