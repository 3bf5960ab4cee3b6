"""Readers of checkpoint files into ``{name: array}``.

Formats: torch's zip, TorchScript and legacy files, safetensors, and detectron2's pickles of NumPy
arrays. Torch is not needed, and no code from the file is run (``torch_pickle``). Source:
docs/reference/checkpoints.md#openai-archives, docs/reference/checkpoints.md#renaming. Limits:
little-endian files, dense tensors, torch 0.4 or later.
"""

import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.zip_archives import damaged, open_zip
from regionclip_jax.conversion.numpy_pickle import NumpyArray, read_numpy_pickle
from regionclip_jax.conversion.safetensors import read_safetensors
from regionclip_jax.conversion.torch_pickle import DTYPES, Module, Storage, Tensor, unpickle
from regionclip_jax.untrusted import most_bytes, open_regular, short

# Name of the tensor of a file with one tensor and no names.
BARE_TENSOR = ""

_MAX_DEPTH = 64
_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_BYTE_ORDER = 64
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, protocol=2)
# Characters of all names together.
_MAX_NAMES = 10_000_000


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read every named tensor of a checkpoint, with the file's own names, layouts and dtypes.

    Args:
        path: an OpenAI TorchScript archive, a ``torch.save`` file (zip or legacy), safetensors, or
            a pickle of NumPy arrays. In a training checkpoint only the entry ``model`` (or
            ``module``, ``state_dict``, ``blobs``) is read; optimizer state is not.

    Returns:
        Arrays that may be read-only views of the file. A single bare tensor has the name
        ``BARE_TENSOR``.

    Raises:
        FileNotFoundError: there is no such file, or it is a pipe or device.
        CheckpointMismatch: the file is cut short, of another format, big-endian, or its pickle
            names an object that is not a tensor; the message names the file and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointMismatch(
            f"{path}: expected a checkpoint file, found a directory; a model directory needs no "
            "conversion, and only --localizer copies from one"
        )
    with open_regular(path) as file:
        start = file.read(len(_LEGACY_START))
        file.seek(0)
        if start.startswith(_ZIP_START):
            return _read_zip(path, file)
        if start == _LEGACY_START:
            return _read_legacy(path, file)
        if start[:1] == pickle.PROTO and start[1:2] in _PROTOCOLS:
            return _read_arrays(path, file)
    if len(start) > 8 and start[8:9] == b"{":
        return read_safetensors(path)
    raise CheckpointMismatch(
        f"{path}: expected a torch zip archive, a torch or NumPy pickle or safetensors, found a "
        f"file that starts with {start[:12]!r}; check that the download is the checkpoint itself, "
        "not a web page, or save it again with torch.save(state_dict, path)"
    )


def _read_zip(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """Read torch.save since 1.6 or torch.jit.save: ``ROOT/data.pkl`` and one entry per storage."""
    with open_zip(path, file) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        roots = [n.removesuffix("data.pkl") for n in sizes if n.count("/") == 1]
        roots = [root for root in roots if f"{root}data.pkl" in sizes and root.endswith("/")]
        if len(roots) != 1:
            raise CheckpointMismatch(
                f"{path}: expected a torch archive with one data.pkl, found a zip with "
                f"{short(sorted(sizes)[:5])}; give the .pt or .pth file itself, unpacked from any "
                "outer zip"
            )
        root = roots[0]
        if f"{root}byteorder" in sizes:
            with archive.open(f"{root}byteorder") as entry:
                order = entry.read(_MAX_BYTE_ORDER).decode("ascii", "replace").strip()
            if order != "little":
                raise _wrong_endian(path, order)
        program = archive.read(f"{root}data.pkl")
        torchscript = f"{root}constants.pkl" in sizes
        content, _ = unpickle(path, io.BytesIO(program), len(program), torchscript=torchscript)

        def read_storage(storage: Storage, expected: int) -> bytes:
            name = f"{root}data/{storage.key}"
            if sizes.get(name) != expected:
                raise damaged(
                    path, f"{name}: expected {expected} bytes of data, found {sizes.get(name)}"
                )
            return archive.read(name)

        return _load_all(path, _named_tensors(path, content), read_storage)


def _read_legacy(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """Read torch.save before 1.6: magic, version, system, object, storage keys, storages."""
    size = path.stat().st_size
    unpickle(path, file, size)
    unpickle(path, file, size)
    system, _ = unpickle(path, file, size)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _wrong_endian(path, "big")
    content, storages = unpickle(path, file, size)
    keys, _ = unpickle(path, file, size)
    texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not texts or sorted(keys) != sorted(storages):
        raise damaged(path, "its list of storages does not agree with its tensors")
    # Each storage starts with its length in elements; an unused one (an optimizer's) is skipped.
    places = {}
    for key in keys:
        length = file.read(8)
        num_elements = struct.unpack("<Q", length)[0] if len(length) == 8 else -1
        num_bytes = num_elements * np.dtype(DTYPES[storages[key].dtype]).itemsize
        if not 0 <= num_bytes <= size - file.tell():
            raise damaged(path, f"storage {key!r} is not whole")
        places[key] = (file.tell(), num_bytes)
        file.seek(num_bytes, io.SEEK_CUR)

    def read_storage(storage: Storage, expected: int) -> bytes:
        start, num_bytes = places[storage.key]
        if num_bytes != expected:
            raise damaged(
                path,
                f"storage {storage.key!r}: expected {expected} bytes of data, found {num_bytes}",
            )
        file.seek(start)
        return file.read(num_bytes)

    return _load_all(path, _named_tensors(path, content), read_storage)


def _read_arrays(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """Read a pickle of NumPy arrays (detectron2's ``.pkl``)."""
    arrays = _named_tensors(path, read_numpy_pickle(path, file, path.stat().st_size))
    if incomplete := [name for name, array in arrays.items() if array.num_bytes is None]:
        raise damaged(path, f"array {incomplete[0]!r} has no numbers")
    _require_bounded(path, sum(array.num_bytes for array in arrays.values()))
    try:
        return {name: array.value() for name, array in arrays.items()}
    except UnicodeEncodeError as error:
        raise damaged(path, "an array has text in place of its numbers") from error


def _require_bounded(path: Path, num_bytes: int) -> None:
    """Refuse tensors that repeat the numbers of a small file."""
    bound = most_bytes(path.stat().st_size)
    if num_bytes > bound:
        raise CheckpointMismatch(
            f"{path}: expected tensors of at most {bound:,} bytes together, found {num_bytes:,}, "
            "which repeat the numbers of the file; save contiguous tensors"
        )


def _wrong_endian(path: Path, order: str) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{path}: expected little-endian numbers, found byte order {order!r}; save it again with "
        "torch on a little-endian machine"
    )


def _named_tensors(path: Path, content) -> dict[str, Any]:
    """``Tensor`` or ``NumpyArray`` of an unpickled object, by the names of its ``state_dict``."""
    if isinstance(content, Tensor | NumpyArray):
        return {BARE_TENSOR: content}
    if isinstance(content, dict):
        for wrapper in ("model", "module", "state_dict", "blobs"):
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    names = _Names(path)
    names.collect(content)
    if not names.tensors:
        raise CheckpointMismatch(
            f"{path}: expected named tensors, found {_describe(content)}; save the model's "
            "state_dict with torch.save and convert that file"
        )
    return names.tensors


class _Names:
    """Tensors of nested dicts and modules by their dotted names.

    One dict may stand in many others, and then the names are exponentially many: their characters
    are bounded.
    """

    def __init__(self, path: Path):
        self.tensors: dict[str, Any] = {}
        self._path, self._characters = path, 0

    def collect(self, value, name: str = "", parents: tuple[int, ...] = ()) -> None:
        self._characters += 1 + len(name)
        if self._characters > _MAX_NAMES:
            raise CheckpointMismatch(
                f"{self._path}: expected at most {_MAX_NAMES:,} characters in all names, found "
                "more; save a plain state_dict instead"
            )
        if isinstance(value, Tensor | NumpyArray):
            self._add(name, value)
            return
        children = value.attributes if isinstance(value, Module) else value
        if not isinstance(children, dict):
            return
        if id(value) in parents or len(parents) > _MAX_DEPTH:
            raise CheckpointMismatch(
                f"{self._path}: {short(name)} contains itself, or lies deeper than {_MAX_DEPTH} "
                "levels; save a plain state_dict instead"
            )
        for key, child in children.items():
            self.collect(child, f"{name}.{key}" if name else str(key), (*parents, id(value)))

    def _add(self, name: str, tensor: Tensor | NumpyArray) -> None:
        if name in self.tensors:
            raise CheckpointMismatch(
                f"{self._path}: expected one tensor of each name, found two named {short(name)}; "
                "save a plain state_dict instead"
            )
        self.tensors[name] = tensor


def _describe(content) -> str:
    if isinstance(content, dict):
        return f"a dict with keys {short(list(content)[:5])}"
    return f"an object of type {type(content).__name__}"


def _load_all(path: Path, tensors: dict[str, Tensor], read_storage) -> dict[str, np.ndarray]:
    """Return views of storages; ``read_storage(storage, num_bytes)`` returns that many bytes."""
    sizes = (math.prod(t.shape) * np.dtype(DTYPES[t.dtype]).itemsize for t in tensors.values())
    _require_bounded(path, sum(sizes))
    buffers: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in buffers:
            num_bytes = storage.num_elements * np.dtype(DTYPES[storage.dtype]).itemsize
            buffers[storage.key] = np.frombuffer(read_storage(storage, num_bytes), np.uint8)
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
