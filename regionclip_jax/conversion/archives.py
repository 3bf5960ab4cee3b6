"""Readers of checkpoint files into ``{name: array}``.

Formats: torch's zip, TorchScript and legacy files, safetensors, and detectron2's pickles of NumPy
arrays. Torch is not needed, and no code from the file is run (``torch_pickle``). Source:
docs/reference/checkpoints.md#openai-archives, docs/reference/checkpoints.md#renaming. Limits:
little-endian files, dense tensors, torch 0.4 or later.
"""

import io
import json
import lzma
import math
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.conversion.numpy_pickle import NumpyArray, read_numpy_pickle
from regionclip_jax.conversion.torch_pickle import (
    DTYPES,
    Module,
    Storage,
    Tensor,
    damaged,
    unpickle,
)

# Name of the tensor of a file with one tensor and no names.
BARE_TENSOR = ""

_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_SAFETENSORS_MAX_HEADER = 100_000_000
_MAX_DEPTH = 64
_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, protocol=2)
# Errors of the standard zip reader for a damaged archive.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
)


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every named tensor of a checkpoint, with the file's own names, layouts and dtypes.

    Args:
        path: an OpenAI TorchScript archive, a ``torch.save`` file (zip or legacy), safetensors, or
            a pickle of NumPy arrays. In a training checkpoint only the entry ``model`` (or
            ``state_dict``, ``blobs``) is read; optimizer state is not.

    Returns:
        Arrays that may be read-only views of the file. A single bare tensor has the name
        ``BARE_TENSOR``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointMismatch: the file is cut short, of another format, big-endian, or its pickle
            names an object that is not a tensor; the message names the file and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointMismatch(
            f"{path}: expected a checkpoint file, found a directory; a model directory needs no "
            "conversion, and only --localizer copies from one"
        )
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_START))
        file.seek(0)
        if start.startswith(_ZIP_START):
            return _read_zip(path, file)
        if start == _LEGACY_START:
            return _read_legacy(path, file)
        if start[:1] == pickle.PROTO and start[1:2] in _PROTOCOLS:
            return _read_arrays(path, file)
    if len(start) > 8 and start[8:9] == b"{":
        return _read_safetensors(path)
    raise CheckpointMismatch(
        f"{path}: expected a torch zip archive, a torch or NumPy pickle or safetensors, found a "
        f"file that starts with {start[:12]!r}; check that the download is the checkpoint itself, "
        "not a web page, or save it again with torch.save(state_dict, path)"
    )


def _read_zip(path: Path, file: io.BufferedIOBase) -> dict[str, np.ndarray]:
    """Read torch.save since 1.6 or torch.jit.save: ``ROOT/data.pkl`` and one entry per storage."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            roots = [n.removesuffix("data.pkl") for n in names if n.count("/") == 1]
            roots = [root for root in roots if f"{root}data.pkl" in names and root.endswith("/")]
            if len(roots) != 1:
                raise CheckpointMismatch(
                    f"{path}: expected a torch archive with one data.pkl, found a zip with "
                    f"{sorted(names)[:5]}; give the .pt or .pth file itself, unpacked from any "
                    "outer zip"
                )
            root = roots[0]
            if f"{root}byteorder" in names:
                order = archive.read(f"{root}byteorder").decode("ascii", "replace").strip()
                if order != "little":
                    raise _wrong_endian(path, order)
            content, _ = unpickle(
                path,
                io.BytesIO(archive.read(f"{root}data.pkl")),
                torchscript=f"{root}constants.pkl" in names,
            )

            def read_storage(storage: Storage) -> bytes:
                return archive.read(f"{root}data/{storage.key}")

            return _load_all(path, _named_tensors(path, content), read_storage)
    except CheckpointMismatch:
        raise
    except _ZIP_ERRORS as error:
        raise damaged(path, f"the zip archive does not open ({error})") from error


def _read_legacy(path: Path, file: io.BufferedIOBase) -> dict[str, np.ndarray]:
    """Read torch.save before 1.6: magic, version, system, object, storage keys, storages."""
    unpickle(path, file)
    unpickle(path, file)
    system, _ = unpickle(path, file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _wrong_endian(path, "big")
    content, storages = unpickle(path, file)
    keys, _ = unpickle(path, file)
    if not isinstance(keys, list) or sorted(map(repr, keys)) != sorted(map(repr, storages)):
        raise damaged(path, "its list of storages does not agree with its tensors")
    # Each storage starts with its length in elements; an unused one (an optimizer's) is skipped.
    places = {}
    for key in keys:
        length = file.read(8)
        num_elements = struct.unpack("<Q", length)[0] if len(length) == 8 else -1
        num_bytes = num_elements * np.dtype(DTYPES[storages[key].dtype]).itemsize
        if not 0 <= num_bytes <= path.stat().st_size - file.tell():
            raise damaged(path, f"storage {key!r} is not whole")
        places[key] = (file.tell(), num_bytes)
        file.seek(num_bytes, io.SEEK_CUR)

    def read_storage(storage: Storage) -> bytes:
        start, num_bytes = places[storage.key]
        file.seek(start)
        return file.read(num_bytes)

    return _load_all(path, _named_tensors(path, content), read_storage)


def _read_arrays(path: Path, file: io.BufferedIOBase) -> dict[str, np.ndarray]:
    """Read a pickle of NumPy arrays (detectron2's ``.pkl``)."""
    tensors = _named_tensors(path, read_numpy_pickle(path, file))
    if incomplete := [name for name, tensor in tensors.items() if not hasattr(tensor, "value")]:
        raise damaged(path, f"array {incomplete[0]!r} has no numbers")
    return {name: tensor.value for name, tensor in tensors.items()}


def _wrong_endian(path: Path, order: str) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{path}: expected little-endian numbers, found byte order {order!r}; save it again with "
        "torch on a little-endian machine"
    )


def _named_tensors(path: Path, content) -> dict[str, Tensor]:
    """Tensors of an unpickled object, by the names of its ``state_dict``."""
    if isinstance(content, Tensor | NumpyArray):
        return {BARE_TENSOR: content}
    if isinstance(content, dict):
        for wrapper in ("model", "state_dict", "blobs"):
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    tensors: dict[str, Tensor] = {}
    _collect(path, content, "", tensors, ())
    if not tensors:
        raise CheckpointMismatch(
            f"{path}: expected named tensors, found {_describe(content)}; save the model's "
            "state_dict with torch.save and convert that file"
        )
    return tensors


def _collect(path: Path, value, name: str, tensors: dict[str, Tensor], parents: tuple[int, ...]):
    if isinstance(value, Tensor | NumpyArray):
        tensors[name] = value
        return
    children = value.attributes if isinstance(value, Module) else value
    if not isinstance(children, dict):
        return
    if id(value) in parents or len(parents) > _MAX_DEPTH:
        raise CheckpointMismatch(
            f"{path}: {name!r} contains itself, or lies deeper than {_MAX_DEPTH} levels; save a "
            "plain state_dict instead"
        )
    for key, child in children.items():
        _collect(path, child, f"{name}.{key}" if name else str(key), tensors, (*parents, id(value)))


def _describe(content) -> str:
    if isinstance(content, dict):
        return f"a dict with keys {list(content)[:5]}"
    return f"an object of type {type(content).__name__}"


def _load_all(path: Path, tensors: dict[str, Tensor], read_storage) -> dict[str, np.ndarray]:
    buffers: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in buffers:
            data = read_storage(storage)
            expected = storage.num_elements * np.dtype(DTYPES[storage.dtype]).itemsize
            if len(data) != expected:
                raise damaged(
                    path, f"tensor {name!r}: expected {expected} bytes of data, found {len(data)}"
                )
            buffers[storage.key] = np.frombuffer(data, np.uint8)
        arrays[name] = _strided_view(path, name, tensor, buffers[storage.key])
    return arrays


def _strided_view(path: Path, name: str, tensor: Tensor, data: np.ndarray) -> np.ndarray:
    dtype = np.dtype(DTYPES[tensor.dtype])
    flat = data[: data.size // dtype.itemsize * dtype.itemsize].view(dtype)
    shape, strides = tensor.shape, tensor.strides
    needed = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if needed > flat.size and 0 not in shape:
        raise damaged(
            path, f"tensor {name!r} of shape {shape} needs {needed} numbers, found {flat.size}"
        )
    try:
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :], shape, [s * dtype.itemsize for s in strides], writeable=False
        )
    except (OverflowError, ValueError) as error:
        raise damaged(path, f"tensor {name!r} has the shape {shape} ({error})") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read safetensors: eight bytes of header length, a JSON header, then the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        if header_length > min(size - 8, _SAFETENSORS_MAX_HEADER):
            raise damaged(path, f"its header claims {header_length} bytes")
        header_bytes = file.read(header_length)
    try:
        header = json.loads(header_bytes)
    except (RecursionError, ValueError) as error:
        raise damaged(path, f"its safetensors header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged(path, f"its safetensors header is a {type(header).__name__}")
    data_start = 8 + header_length
    data = np.memmap(path, np.uint8, "r")
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype_name, shape = str(entry["dtype"]), tuple(entry["shape"])
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"tensor {name!r} has the header entry {entry!r}") from error
        if dtype_name not in _SAFETENSORS_DTYPES:
            raise CheckpointMismatch(
                f"{path}: tensor {name!r}: expected one of {sorted(_SAFETENSORS_DTYPES)}, found "
                f"dtype {dtype_name!r}; save it as F32 first"
            )
        dtype = np.dtype(DTYPES[_SAFETENSORS_DTYPES[dtype_name]])
        whole = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
        if not whole or end - begin != math.prod(shape) * dtype.itemsize or data_start + end > size:
            raise damaged(path, f"tensor {name!r} of shape {shape} lies at bytes {begin}..{end}")
        # A view of the mapped file: numbers are read on first use only.
        values = data[data_start + begin : data_start + end].view(dtype)
        try:
            arrays[name] = values.reshape(shape)
        except (OverflowError, ValueError) as error:
            raise damaged(path, f"tensor {name!r} has the shape {shape} ({error})") from error
    if not arrays:
        raise CheckpointMismatch(
            f"{path}: expected named tensors, found a safetensors file with none; check that it "
            "is the model's weights file"
        )
    return arrays
