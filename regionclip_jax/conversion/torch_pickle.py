"""Restricted reader of pickles: it returns tensors and refuses all else.

A pickle is a program that may call every object that it can name. Here it can name ordered dicts,
torch's tensor constructors (replaced by our own), storages and dtypes. In a TorchScript archive it
can also name module classes, read as attributes only. Any other name is refused, and no code from
the file is run. ``restricted_pickle`` bounds work and memory.
"""

import pickle
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from regionclip_jax.conversion.restricted_pickle import RestrictedUnpickler, is_sizes, load
from regionclip_jax.untrusted import short

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

    def __init__(self):
        self.attributes: dict = {}

    def set_state(self, attributes: Any):
        if type(attributes) is not dict:
            raise pickle.UnpicklingError(f"a module with attributes {short(attributes)}")
        self.attributes = attributes


def _rebuild_tensor(
    storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None
):
    return _make_tensor(storage, getattr(storage, "dtype", None), offset, shape, strides)


def _rebuild_tensor_of_dtype(
    storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None
):
    return _make_tensor(storage, dtype, offset, shape, strides)


def _make_tensor(storage, dtype, offset, shape, strides) -> Tensor:
    if (
        not isinstance(storage, Storage)
        or type(dtype) is not str
        or dtype not in DTYPES
        or not all(is_sizes(sizes) for sizes in (shape, strides, [offset]))
        or len(shape) != len(strides)
    ):
        raise pickle.UnpicklingError(
            f"tensor of dtype {short(dtype)}, shape {short(shape)}, strides {short(strides)}"
        )
    return Tensor(storage, dtype, offset, tuple(shape), tuple(strides))


def _keep_first(value, *_):
    """Stand-in for torch functions that only annotate their first argument."""
    return value


class _TensorUnpickler(RestrictedUnpickler):
    """Unpickler of tensors as ``Tensor``."""

    allowed = {
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

    def __init__(self, path: Path, file: BinaryIO, size: int, *, torchscript: bool):
        # torch writes UTF-8; Python 2's legacy files hold ASCII names.
        super().__init__(path, file, size, encoding="utf-8")
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
            ) if dtype in DTYPES and is_sizes([num_elements]):  # fmt: skip
                self.require_key(key)
                return self.storages.setdefault(key, Storage(key, dtype, num_elements))
        raise pickle.UnpicklingError(f"unknown form of storage {short(pid)}")


def unpickle(path: Path, file: BinaryIO, size: int, *, torchscript: bool = False):
    """Read one pickle from ``file``.

    Args:
        path: for errors.
        size: bytes of ``file``.
        torchscript: allow the names of a TorchScript archive.

    Returns:
        The object, its tensors as ``Tensor``, and every storage it names, by key.

    Raises:
        CheckpointMismatch: the pickle is damaged, names an object that is not part of a tensor, or
            is larger than that of any checkpoint.
    """
    unpickler = _TensorUnpickler(path, file, size, torchscript=torchscript)
    return load(unpickler), unpickler.storages
