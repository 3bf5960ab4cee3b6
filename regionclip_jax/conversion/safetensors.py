"""Safetensors: eight bytes of header length, a JSON header, then the numbers."""

import itertools
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.artifacts.zip_archives import damaged
from regionclip_jax.conversion.restricted_pickle import is_sizes
from regionclip_jax.conversion.torch_pickle import DTYPES
from regionclip_jax.files import replaced_file
from regionclip_jax.untrusted import MAX_JSON_BYTES, parse_json, reason, short

_DTYPES = {
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


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return views of the mapped file by name: numbers are read on first use only.

    Raises:
        CheckpointMismatch: the header is damaged, has more than ``MAX_JSON_BYTES``, names a tensor
            twice or one of another dtype; or tensors are outside of the file or overlap.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        if header_length > min(size - 8, MAX_JSON_BYTES):
            raise damaged(path, f"its header claims {header_length} bytes")
        header_bytes = file.read(header_length)
    try:
        header = parse_json(header_bytes, f"{path}: header of safetensors")
    except ValueError as error:
        raise CheckpointMismatch(f"{error}; download or save the file again") from error
    if not isinstance(header, dict):
        raise damaged(path, f"its safetensors header is a {type(header).__name__}")
    header.pop("__metadata__", None)
    data_start = 8 + header_length
    data = np.memmap(path, np.uint8, "r")
    arrays, places = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _read_entry(path, name, entry)
        if end - begin != math.prod(shape) * dtype.itemsize or data_start + end > size:
            raise damaged(
                path, f"tensor {short(name)} of shape {short(shape)} lies at bytes {begin}..{end}"
            )
        places.append((begin, end, name))
        values = data[data_start + begin : data_start + end].view(dtype)
        try:
            arrays[name] = values.reshape(shape)
        except (OverflowError, ValueError) as error:
            raise damaged(
                path, f"tensor {short(name)} has the shape {short(shape)} ({reason(error)})"
            ) from error
    places.sort()
    for (_, end, name), (begin, _, following) in itertools.pairwise(places):
        if begin < end:
            raise damaged(path, f"tensors {short(name)} and {short(following)} overlap")
    if not arrays:
        raise CheckpointMismatch(
            f"{path}: expected named tensors, found a safetensors file with none; check that it "
            "is the model's weights file"
        )
    return arrays


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write tensors as fp32, in the order of their names; the file appears whole.

    The metadata names PyTorch's layout, which transformers asks for.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + 4 * tensor.size
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    # The numbers begin at a multiple of their size.
    text += b" " * (-len(text) % 8)
    with replaced_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(np.ascontiguousarray(tensor, "<f4"))


def _read_entry(path: Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if is_sizes(
            shape
        ) and is_sizes([begin, end]):
            if dtype not in _DTYPES:
                raise CheckpointMismatch(
                    f"{path}: tensor {short(name)}: expected one of {sorted(_DTYPES)}, found "
                    f"dtype {short(dtype)}; save it as F32 first"
                )
            return np.dtype(DTYPES[_DTYPES[dtype]]), tuple(shape), begin, end
    raise damaged(path, f"tensor {short(name)} has the header entry {short(entry)}")
