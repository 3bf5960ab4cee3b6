"""Writer of torch's zip archives, without torch; ``torch.load(weights_only=True)`` reads them.

The format is that of ``torch.save`` since 1.6: ``archive/data.pkl`` names storages, and each has
an entry of its own. ``archives`` is the reader.
"""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from regionclip_jax.files import replaced_file

_ROOT = "archive"
# torch maps numbers of files to memory, and wants them at multiples of this number of bytes.
_ALIGNMENT = 64
_ENTRY_HEADER = 30
_FORMAT_VERSION = b"3\n"


def write_torch_archive(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write ``{"model": tensors}`` in fp32, as detectron2 saves models; the file appears whole."""
    with replaced_file(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        _add(archive, "data.pkl", _program(tensors))
        _add(archive, "byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            _add(archive, f"data/{key}", np.ascontiguousarray(tensor, "<f4").tobytes())
        _add(archive, "version", _FORMAT_VERSION)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add an entry without compression, whose content begins at a multiple of the alignment."""
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    start = archive.start_dir + _ENTRY_HEADER + len(entry.filename) + 4
    # A field that readers skip: its kind, its length, zeros.
    padding = -start % _ALIGNMENT
    entry.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    archive.writestr(entry, content)


# torch's classes cannot be pickled without torch, so the opcodes of the pickle are written here.


def _program(tensors: dict[str, np.ndarray]) -> bytes:
    """Return the pickle of ``{"model": OrderedDict(tensors)}``, in torch's protocol 2."""
    items = b"".join(
        _text(name) + _tensor(str(key), tensor.shape)
        for key, (name, tensor) in enumerate(tensors.items())
    )
    content = _EMPTY + pickle.MARK + items + pickle.SETITEMS
    model = pickle.EMPTY_DICT + _text("model") + content + pickle.SETITEM
    return pickle.PROTO + b"\x02" + model + pickle.STOP


def _tensor(key: str, shape: tuple[int, ...]) -> bytes:
    """Build a contiguous fp32 tensor of the storage ``key``."""
    sizes = np.array((*shape, 1), np.int64)
    strides = (int(sizes[axis + 1 :].prod()) for axis in range(len(shape)))
    kind, size = _name("torch", "FloatStorage"), _whole(int(sizes.prod()))
    storage = _tuple([_text("storage"), kind, _text(key), _text("cpu"), size])
    arguments = [
        storage + pickle.BINPERSID,
        _whole(0),
        _tuple(map(_whole, shape)),
        _tuple(map(_whole, strides)),
        pickle.NEWFALSE,
        _EMPTY,
    ]
    return _name("torch._utils", "_rebuild_tensor_v2") + _tuple(arguments) + pickle.REDUCE


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(items: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + len(encoded).to_bytes(4, "little") + encoded


def _whole(number: int) -> bytes:
    encoded = pickle.encode_long(number)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


# An empty ordered dict.
_EMPTY = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
