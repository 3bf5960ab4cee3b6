"""Reader of NumPy arrays in a plain pickle, the format of detectron2's model zoo (``.pkl``).

As for torch's files (``torch_pickle``), no code from the file is run. Objects that check their
arguments replace NumPy's own reconstruction.
"""

import math
import pickle
from pathlib import Path
from typing import BinaryIO

import numpy as np

from regionclip_jax.conversion.restricted_pickle import RestrictedUnpickler, is_sizes, load
from regionclip_jax.untrusted import short

# Allowed kinds and widths of numbers; all little-endian or one byte wide.
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class _Dtype:
    """Stand-in for a numpy.dtype of plain numbers."""

    __slots__ = ("name", "little_endian")

    def __init__(self, name, align=False, copy=False):
        if type(name) is not str or name not in _DTYPES:
            raise pickle.UnpicklingError(f"dtype {short(name)}, expected one of {_DTYPES}")
        self.name, self.little_endian = name, False

    def set_state(self, state):
        match state:
            case (_, "<" | "|", None, None, None, *_):
                self.little_endian = True
            case _:
                raise pickle.UnpicklingError(f"dtype {self.name} of the form {short(state)}")


class NumpyArray:
    """An array of a pickle; its state is read before its numbers.

    Attributes:
        num_bytes: of the numbers; None before the state is read.
    """

    num_bytes: int | None = None

    def set_state(self, state):
        _, shape, dtype, column_major, data = state
        self._fill(shape, dtype, "F" if column_major is True else "C", data)

    def value(self) -> np.ndarray:
        """Return the array.

        Raises:
            UnicodeEncodeError: text in place of bytes has other characters than bytes.
        """
        data = self._data.encode("latin1") if isinstance(self._data, str) else self._data
        return np.frombuffer(data, self._numbers).reshape(self._shape, order=self._order)

    def _fill(self, shape, dtype, order, data):
        if (
            not is_sizes(shape)
            or not isinstance(dtype, _Dtype)
            or not dtype.little_endian
            or not isinstance(data, bytes | str)
        ):
            raise pickle.UnpicklingError(f"array of shape {short(shape)} and dtype {short(dtype)}")
        numbers = np.dtype(dtype.name)
        # Each character of a text stands for a byte.
        if len(data) != math.prod(shape) * numbers.itemsize:
            raise pickle.UnpicklingError(f"array of shape {shape} with other than its numbers")
        self._shape, self._numbers, self._order, self._data = tuple(shape), numbers, order, data
        self.num_bytes = len(data)


def _reconstruct(kind, shape, type_code) -> NumpyArray:
    if kind != "ndarray":
        raise pickle.UnpicklingError(f"an array of type {short(kind)}")
    return NumpyArray()


def _from_buffer(data, dtype, shape, order, axis_order=None) -> NumpyArray:
    """Array in the form of protocol 5."""
    if order not in ("C", "F") or axis_order is not None:
        raise pickle.UnpicklingError(f"an array in the order {short((order, axis_order))}")
    array = NumpyArray()
    array._fill(shape, dtype, order, data)
    return array


def _no_bytes() -> bytes:
    """Empty bytes, as protocol 2 writes them."""
    return b""


def _text_of_bytes(text: str, codec: str) -> str:
    """Text that stands for bytes, as Python 3 writes them into pickles for Python 2."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the codec {short(codec)}")
    # The array encodes it. Here one text could be copied many times.
    return text


class _ArrayUnpickler(RestrictedUnpickler):
    allowed = {
        "__builtin__.bytes": _no_bytes,
        "_codecs.encode": _text_of_bytes,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": "ndarray",
        **{
            f"{room}.multiarray._reconstruct": _reconstruct
            for room in ("numpy.core", "numpy._core")
        },
        **{f"{room}.numeric._frombuffer": _from_buffer for room in ("numpy.core", "numpy._core")},
    }

    def persistent_load(self, pid):
        raise pickle.UnpicklingError(f"storage {short(pid)} outside of the pickle")


def read_numpy_pickle(path: Path, file: BinaryIO, size: int):
    """Return the object of a pickle of ``size`` bytes, with arrays as ``NumpyArray``.

    Raises:
        CheckpointMismatch: the pickle is damaged, names an object that is not part of an array, or
            has more steps than that of any model.
    """
    # Python 2's strings: names are ASCII, and latin1 keeps bytes unchanged.
    return load(_ArrayUnpickler(path, file, size, encoding="latin1"))
