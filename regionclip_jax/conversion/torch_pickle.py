"""Restricted reader of pickles: it returns tensors and refuses all else.

A pickle is a program that may call every object that it can name. Here it can name ordered dicts,
torch's tensor constructors (replaced by our own), storages and dtypes. In a TorchScript archive it
can also name module classes, read as attributes only. Any other name is refused, and no code from
the file is run.
"""

import collections
import io
import pickle
import struct
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from regionclip_jax.artifacts.model_card import CheckpointMismatch

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
# Errors of the standard unpickler for a hostile or broken pickle.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    struct.error,
    TypeError,
    ValueError,
)


class Storage(NamedTuple):
    """A block of numbers named by a pickle and not yet read."""

    key: str
    dtype: str
    num_elements: int


class Tensor(NamedTuple):
    """A strided view of a storage; offset and strides count elements of ``dtype``.

    A tuple, because a pickle may overwrite the fields of any mutable object after its checks.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Module:
    """A TorchScript module: its attributes, none of its code."""

    attributes: dict = {}

    def __setstate__(self, attributes: dict):
        self.attributes = dict(attributes)


def _rebuild_tensor(
    storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None
):
    return _make_tensor(storage, getattr(storage, "dtype", None), offset, shape, strides)


def _rebuild_tensor_of_dtype(
    storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None
):
    return _make_tensor(storage, dtype, offset, shape, strides)


def _make_tensor(storage, dtype, offset, shape, strides) -> Tensor:
    shape, strides = tuple(shape), tuple(strides)
    numbers = (*shape, *strides, offset)
    if (
        not isinstance(storage, Storage)
        or dtype not in DTYPES
        or len(shape) != len(strides)
        or not all(isinstance(n, int) and n >= 0 for n in numbers)
    ):
        raise pickle.UnpicklingError(f"tensor of dtype {dtype!r}, shape {shape}, strides {strides}")
    return Tensor(storage, dtype, offset, shape, strides)


def _keep_first(value, *_):
    """Stand-in for torch functions that only annotate their first argument."""
    return value


class RestrictedUnpickler(pickle._Unpickler):
    """Unpickler that refuses every class and function that is not listed in ``allowed``.

    It derives from the standard library's Python implementation. The C implementation allocates any
    size that a damaged file names, which can exhaust memory. Checkpoints have some ten thousand
    opcodes, so speed does not matter.
    """

    allowed: dict[str, object] = {}

    def __init__(self, path: Path, file: io.BufferedIOBase, *, encoding: str):
        super().__init__(file, encoding=encoding)
        self._path = path

    def find_class(self, module: str, name: str):
        full_name = f"{module}.{name}"
        if full_name in self.allowed:
            return self.allowed[full_name]
        raise CheckpointMismatch(
            f"{self._path}: refused: its pickle asks for {full_name}, which is not part of a "
            "tensor, and to load it could run code; if you trust the file, open it with torch "
            "where that is safe and save its tensors alone: torch.save({'model': state_dict}, path)"
        )


class _TensorUnpickler(RestrictedUnpickler):
    """Unpickler of tensors as ``Tensor``."""

    allowed = {
        "collections.OrderedDict": collections.OrderedDict,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_of_dtype,
        "torch._utils._rebuild_parameter": _keep_first,
        "torch.storage.UntypedStorage": "uint8",
        **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
        **{f"torch.{dtype}": dtype for dtype in DTYPES},
    }
    _allowed_in_torchscript = {
        f"torch.jit._pickle.{name}": _keep_first
        for name in (
            "build_boollist", "build_doublelist", "build_intlist", "build_tensorlist",
            "restore_type_tag",
        )
    }  # fmt: skip

    def __init__(self, path: Path, file: io.BufferedIOBase, *, torchscript: bool = False):
        # torch writes UTF-8; Python 2's legacy files hold ASCII names.
        super().__init__(path, file, encoding="utf-8")
        self._torchscript = torchscript
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str):
        full_name = f"{module}.{name}"
        if self._torchscript and full_name in self._allowed_in_torchscript:
            return self._allowed_in_torchscript[full_name]
        if self._torchscript and full_name.startswith("__torch__."):
            return Module
        return super().find_class(module, name)

    def persistent_load(self, pid):
        match pid:
            case ("storage", str(dtype), str(key), str(), int(num_elements)) | (
                "storage", str(dtype), str(key), str(), int(num_elements), None
            ) if dtype in DTYPES and num_elements >= 0:  # fmt: skip
                return self.storages.setdefault(key, Storage(key, dtype, num_elements))
        raise pickle.UnpicklingError(f"unknown form of storage {pid!r}")


def unpickle(path: Path, file: io.BufferedIOBase, *, torchscript: bool = False):
    """Read one pickle from ``file``; ``path`` is for errors.

    Returns:
        The object, its tensors as ``Tensor``, and every storage it names, by key.

    Raises:
        CheckpointMismatch: the pickle is damaged, or names an object that is not part of a tensor.
    """
    unpickler = _TensorUnpickler(path, file, torchscript=torchscript)
    try:
        content = unpickler.load()
    except CheckpointMismatch:
        raise
    except PICKLE_ERRORS as error:
        what = f"its pickle does not load ({type(error).__name__}: {error})"
        raise damaged(path, what) from error
    return content, unpickler.storages


def damaged(path: Path, what: str) -> CheckpointMismatch:
    """Return the error for a damaged file."""
    return CheckpointMismatch(
        f"{path}: {what} (file of {path.stat().st_size} bytes); the file is damaged or cut short: "
        "download or copy it again and compare its size and checksum with the publisher's"
    )
