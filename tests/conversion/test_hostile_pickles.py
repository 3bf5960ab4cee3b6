"""Pickles whose objects share their parts are read in linear time, or refused.

A pickle can name an object many times. The names, hashes and texts of such objects are
exponentially many or long, so a mistake here runs for ever: the readers run in one process with a
limit of time and memory.
"""

import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.archives import read_tensors

_START = b"\x80\x04"
_LEGACY_HEADER = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
_DEPTH = 60
_SECONDS, _BYTES = 120, 6 * 2**30
# Fewer than the reader allows, for a quick test.
_STEPS = 50_000
_READ = f"""
import resource
import sys
from regionclip_jax.conversion import restricted_pickle
from regionclip_jax.conversion.archives import read_tensors
from regionclip_jax.settings import UserError
restricted_pickle.MAX_STEPS = {_STEPS}
resource.setrlimit(resource.RLIMIT_AS, ({_BYTES}, {_BYTES}))
for path in sys.argv[1:]:
    try:
        print(len(read_tensors(path)), "tensors")
    except UserError as error:
        print(error)
"""


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def twice_in_itself(inner: bytes, start: bytes, middle: bytes, end: bytes) -> bytes:
    """Opcodes of a container that holds one twice, that again one twice, 60 deep."""
    program = inner + b"q\x000"
    for number in range(_DEPTH):
        get = b"h" + bytes([number])
        program += start + get + middle + get + end + b"q" + bytes([number + 1]) + b"0"
    return program + b"h" + bytes([_DEPTH])


ID = b"(" + text("storage") + global_("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04t"
ORDERED = global_("collections", "OrderedDict")
TUPLE = twice_in_itself(b")", b"", b"", b"\x86")


def tensor(
    shape: bytes = b"K\x02K\x02\x86", strides: bytes = b"K\x02K\x01\x86", dtype: bytes = b""
) -> bytes:
    name = "_rebuild_tensor_v3" if dtype else "_rebuild_tensor_v2"
    return (
        global_("torch._utils", name) + b"(" + ID + b"QK\x00" + shape + strides + b"\x89"
        + ORDERED + b")R" + dtype + b"tR"
    )  # fmt: skip


def array(shape: bytes) -> bytes:
    return (
        global_("numpy.core.multiarray", "_reconstruct") + global_("numpy", "ndarray")
        + b"K\x00\x85" + text("b") + b"\x87R(K\x01" + shape + b"N\x89" + text("") + b"tb"
    )  # fmt: skip


def named(value: bytes) -> bytes:
    return b"}" + text("a") + value + b"s"


_ENCODED = (global_("_codecs", "encode") + b"h\x00h\x01\x86R") * 6000
_COPIED = (ORDERED + b"h\x00\x85R") * 5000
PROGRAMS = {
    "dicts": twice_in_itself(tensor(), b"}(" + text("a"), text("b"), b"u"),
    "empty_dicts": twice_in_itself(b"}", b"}(" + text("a"), text("b"), b"u"),
    "key": b"}" + TUPLE + tensor() + b"s",
    "keys": b"}(" + TUPLE + tensor() + b"u",
    "dict_key": b"(" + TUPLE + tensor() + b"d",
    "ordered_key": ORDERED + b"]" + TUPLE + b"N\x86a\x85R",
    "set_item": b"\x8f(" + TUPLE + b"\x90",
    "frozen_item": b"(" + TUPLE + b"\x91",
    "attribute": ORDERED + b")R}" + TUPLE + b"Nsb",
    "shape": named(tensor(shape=TUPLE)),
    "strides": named(tensor(strides=TUPLE)),
    "dtype": named(tensor(dtype=TUPLE)),
    "array_shape": named(array(TUPLE)),
    "storage": TUPLE + b"Q",
    "storage_key": ID.replace(text("0"), TUPLE) + b"Q",
    "content": TUPLE,
    # Each of thousands of calls would copy a megabyte, or thousands of entries.
    "copied_text": text("x" * 10**6) + b"q\x00" + text("latin1") + b"q\x010](" + _ENCODED + b"e",
    "copied_entries": b"](" + b"K\x01N\x86" * 5000 + b"eq\x000](" + _COPIED + b"e",
    "opcodes": b"N0" * _STEPS + b"N",
    # 32 GiB in a file of some bytes.
    "size": b"\x96" + struct.pack("<Q", 2**35),
}  # fmt: skip


def write(folder, name: str) -> list:
    """Write the program of ``name`` as a zip archive, a legacy file and a plain pickle."""
    program = _START + PROGRAMS[name] + b"."
    with zipfile.ZipFile(folder / f"{name}.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", bytes(16))
    header = b"".join(pickle.dumps(part, 2) for part in _LEGACY_HEADER)
    storages = pickle.dumps(["0"], 2) + struct.pack("<Q", 4) + bytes(16)
    (folder / f"{name}.pth").write_bytes(header + program + storages)
    (folder / f"{name}.pkl").write_bytes(program)
    # The list of a legacy file's storages is a pickle of its own.
    content = _START + named(tensor()) + b"."
    (folder / f"{name}_keys.pth").write_bytes(header + content + program)
    return [folder / f"{name}{end}" for end in (".pt", ".pth", ".pkl", "_keys.pth")]


def test_objects_that_share_their_parts_are_refused_in_linear_time(tmp_path):
    paths = [path for name in PROGRAMS for path in write(tmp_path, name)]
    done = subprocess.run(
        [sys.executable, "-c", _READ, *paths],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for path, line in zip(paths, lines, strict=True):
        assert line.startswith(f"{path}: ") and len(line) < len(str(path)) + 500
        assert "MemoryError" not in line


def test_a_state_changes_only_the_objects_of_the_pickle(tmp_path):
    """A state of a function would change the reader for the next file."""
    program = global_("_codecs", "encode") + b"N}" + text("__defaults__") + b"Ns\x86b."
    (tmp_path / "a.pkl").write_bytes(_START + program)
    with pytest.raises(CheckpointMismatch, match="a state of <function"):
        read_tensors(tmp_path / "a.pkl")


def test_pairs_and_sets_of_older_writers_are_read(tmp_path):
    """Python 2 gives an ordered dict its pairs; training checkpoints may hold sets."""
    pair = b"]" + text("weight") + b"a" + tensor() + b"a"
    program = named(ORDERED + b"](" + pair + b"e\x85R") + text("names") + b"\x8f(K\x01\x90s."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", _START + program)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    tensors = read_tensors(tmp_path / "a.pt")
    assert list(tensors) == ["a.weight"]
    np.testing.assert_array_equal(tensors["a.weight"], [[0, 1], [2, 3]])
