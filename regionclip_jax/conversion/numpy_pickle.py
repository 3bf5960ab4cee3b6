"""Reader of NumPy arrays in a plain pickle, the format of detectron2's model zoo (``.pkl``).

As for torch's files (``torch_pickle``), no code from the file is run. Objects that check their
arguments replace NumPy's own reconstruction.
"""

import io
import math
import pickle
from pathlib import Path

import numpy as np

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.torch_pickle import PICKLE_ERRORS, RestrictedUnpickler, damaged

# Allowed kinds and widths of numbers; all little-endian or one byte wide.
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class _Dtype:
    """Stand-in for a numpy.dtype of plain numbers."""

    __slots__ = ("name", "little_endian")

    def __init__(self, name, align=False, copy=False):
        if name not in _DTYPES:
            raise pickle.UnpicklingError(f"dtype {name!r}, expected one of {_DTYPES}")
        self.name, self.little_endian = name, False

    def __setstate__(self, state):
        _, order, *rest = state
        if order not in ("<", "|") or any(part is not None for part in rest[:3]):
            raise pickle.UnpicklingError(f"dtype {self.name} of the form {state!r}")
        self.little_endian = True


class NumpyArray:
    """An array of a pickle; ``value`` is set once its state is read."""

    __slots__ = ("value",)

    def __setstate__(self, state):
        _, shape, dtype, column_major, data = state
        self._fill(shape, dtype, "F" if column_major is True else "C", data)

    def _fill(self, shape, dtype, order, data):
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin1")
        whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not whole or not isinstance(dtype, _Dtype) or not dtype.little_endian:
            raise pickle.UnpicklingError(f"array of shape {shape!r} and dtype {dtype!r}")
        numbers = np.dtype(dtype.name)
        if (
            not isinstance(data, bytes | bytearray)
            or len(data) != math.prod(shape) * numbers.itemsize
        ):
            raise pickle.UnpicklingError(f"array of shape {shape} with other than its numbers")
        self.value = np.frombuffer(data, numbers).reshape(shape, order=order)


def _reconstruct(kind, shape, type_code) -> NumpyArray:
    if kind != "ndarray":
        raise pickle.UnpicklingError(f"an array of type {kind!r}")
    return NumpyArray()


def _from_buffer(data, dtype, shape, order, axis_order=None) -> NumpyArray:
    """Array in the form of protocol 5."""
    if order not in ("C", "F") or axis_order is not None:
        raise pickle.UnpicklingError(f"an array in the order {order!r}, {axis_order!r}")
    array = NumpyArray()
    array._fill(shape, dtype, order, data)
    return array


def _no_bytes() -> bytes:
    """Empty bytes, as protocol 2 writes them."""
    return b""


def _encode(text: str, codec: str) -> bytes:
    """Bytes, as Python 3 writes them into pickles for Python 2."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the codec {codec!r}")
    return text.encode("latin1")


class _ArrayUnpickler(RestrictedUnpickler):
    allowed = {
        "__builtin__.bytes": _no_bytes,
        "_codecs.encode": _encode,
        "collections.OrderedDict": dict,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": "ndarray",
        **{
            f"{room}.multiarray._reconstruct": _reconstruct
            for room in ("numpy.core", "numpy._core")
        },
        **{f"{room}.numeric._frombuffer": _from_buffer for room in ("numpy.core", "numpy._core")},
    }

    def persistent_load(self, pid):
        raise pickle.UnpicklingError(f"storage {pid!r} outside of the pickle")


def read_numpy_pickle(path: Path, file: io.BufferedIOBase):
    """Return the object of a pickle, with arrays as ``NumpyArray``.

    Raises:
        CheckpointMismatch: the pickle is damaged, or names an object that is not part of an array.
    """
    try:
        # Python 2's strings: names are ASCII, and latin1 keeps bytes unchanged.
        return _ArrayUnpickler(path, file, encoding="latin1").load()
    except CheckpointMismatch:
        raise
    except PICKLE_ERRORS as error:
        what = f"its pickle does not load ({type(error).__name__}: {error})"
        raise damaged(path, what) from error
