"""Pickles of NumPy arrays (detectron2's ``.pkl``) are read exactly and never executed."""

import collections
import os
import pickle

import numpy as np
import pytest

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.archives import read_tensors

ARRAYS = {
    "backbone.stem.conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "half": np.array([0.5, -2.0], np.float16),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_read_bit_for_bit(tmp_path, protocol):
    path = tmp_path / "model_final.pkl"
    content = {
        "model": collections.OrderedDict(ARRAYS), "__author__": "Detectron2 Model Zoo",
        "matching_heuristics": True,
    }  # fmt: skip
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    tensors = read_tensors(path)
    assert list(tensors) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected)


def test_pickles_of_python_2_are_read(tmp_path):
    """Read a float32 array of Python 2, whose strings are bytes."""
    data = np.array([1.5, -3.25], np.float32).tobytes()
    program = (
        b"\x80\x02}U\x04bluecnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08" + data + b"tbs."
    )
    (tmp_path / "old.pkl").write_bytes(program)
    np.testing.assert_array_equal(read_tensors(tmp_path / "old.pkl")["blue"], [1.5, -3.25])


class Command:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "content",
    [
        {"a": Command()},
        {"a": np.array(["words"], object)},
        {"a": np.array([1 + 2j])},
        {"a": np.zeros(2, ">f4")},
        {"a": np.zeros(2, [("x", "f4")])},
        {"a": np.ma.zeros(2)},
        {"no": "arrays"},
        [],
    ],
    ids=["command", "objects", "complex", "big-endian", "records", "masked", "words", "empty"],
)
def test_objects_other_than_numeric_arrays_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointMismatch, match="bad.pkl"):
        read_tensors(tmp_path / "bad.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path, kept):
    whole = pickle.dumps({"model": ARRAYS})
    (tmp_path / "cut.pkl").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointMismatch, match="cut.pkl.*damaged or cut short"):
        read_tensors(tmp_path / "cut.pkl")
