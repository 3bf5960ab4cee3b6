"""Checkpoint files, vocabularies and model directories that were made to do harm.

A payload that runs touches the file that the environment variable CANARY names.
"""

import functools
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

Maker = Callable[[Path], None]
CANARY = "REGIONCLIP_CANARY"
_MEGABYTE = 2**20


class Payload:
    """Touch the canary when it is unpickled."""

    def __reduce__(self):
        return os.system, (f'touch "${CANARY}"',)


# Pickles


def _laughs(depth: int, pair: bytes) -> bytes:
    """Return a pickle of containers in containers, each twice: memory is linear, a walk is not."""
    # PUT and GET by text, as their numbers exceed a byte.
    text = b"\x80\x02]p0\n0"
    for level in range(depth):
        text += pair.replace(b"GET", b"g%d\n" % level) + b"p%d\n0" % (level + 1)
    return text + b"g%d\n." % depth


_LISTS = b"(GETGETl"
_TUPLES = b"(GETGETt"
_DICTS = b"(I1\nGETI2\nGETd"


def _tensor(key: bytes, shape: bytes, stride: bytes = b"(I1\nt") -> bytes:
    """Return the opcodes of a torch tensor."""
    storage = b"(U\x07storagectorch\nFloatStorage\n" + key + b"U\x03cpuI1\ntQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"I0\n"
        + shape
        + stride
        + b"I00\nccollections\nOrderedDict\n)RtR"
    )


def _state(name: bytes, tensor: bytes) -> bytes:
    return b"\x80\x02}X" + struct.pack("<I", len(name)) + name + tensor + b"s."


_DEEP = 100_000
PICKLES: dict[str, bytes] = {
    "code": pickle.dumps({"state_dict": Payload()}, 2),
    "code in protocol 4": pickle.dumps(Payload(), 4),
    "code in a key": pickle.dumps({("a", Payload()): 1}, 2),
    "lists in lists, 60 deep": _laughs(60, _LISTS),
    "dicts in dicts, 60 deep": _laughs(60, _DICTS),
    "tuples in tuples as a key": _laughs(60, _TUPLES)[:-1] + b"\x7d(g60\nI1\nu.",
    "tuples in tuples as a shape": _state(
        b"a", _tensor(b"U\x010", _laughs(60, _TUPLES)[2:-1].replace(b"]p0", b"]p0", 1))
    ),
    "tuples in tuples as a persistent id": _laughs(60, _TUPLES)[:-1] + b"Q.",
    "100,000 lists": b"\x80\x02" + b"(" * _DEEP + b"l" * _DEEP + b".",
    "text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "bytes of 2^31 bytes": b"\x80\x03B" + struct.pack("<I", 2**31 - 1) + b"x.",
    "bytearray of 2^36 bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"x.",
    "number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "memo of 2^32 entries": b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "decimal of 10^6 digits": b"\x80\x02I" + b"9" * 10**6 + b"\n.",
    "shape of 10^18": _state(b"a", _tensor(b"U\x010", b"(L1000000000L\nL1000000000L\nt")),
    "one number as 10^12": _state(
        b"visual.conv1.weight",
        _tensor(b"U\x010", b"(L1000000L\nL1000000L\nt", b"(I0\nI0\nt"),
    ),
    "layer 39999999": _state(
        b"transformer.resblocks.39999999.ln_1.weight", _tensor(b"U\x010", b"(I1\nt")
    ),
    "cut": pickle.dumps({"a": 1}, 2)[:-5],
    "no pickle": b"hello",
    "empty": b"",
}


def _legacy(content: bytes) -> bytes:
    """Return torch's file before zip archives: magic number, protocol, system, object, keys."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + content + pickle.dumps([], 2)


def _archive(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def _torch_archive(content: bytes, storage: bytes = b"\0" * 4) -> bytes:
    return _archive(
        [("archive/data.pkl", content), ("archive/data/0", storage), ("archive/version", b"3\n")]
    )


def _zeros(megabytes: int) -> bytes:
    return b"\0" * (megabytes * _MEGABYTE)


def deflated_zeros(megabytes: int) -> bytes:
    """Return raw deflate data of zeros, without compressing all of them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(_zeros(1)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes + packer.flush(zlib.Z_FINISH)


def _bomb(name: str, content: bytes, megabytes: int = 3072) -> bytes:
    """Return an archive with an entry that inflates a thousandfold, and a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr(name, deflated_zeros(megabytes))
        entry = archive.filelist[-1]
        entry.compress_type, entry.file_size = zipfile.ZIP_DEFLATED, megabytes * _MEGABYTE
        entry.CRC = functools.reduce(lambda crc, _: zlib.crc32(_zeros(1), crc), range(megabytes), 0)
    data = bytearray(file.getvalue())
    # The header before the entry still says that it is stored.
    start = entry.header_offset
    data[start + 8 : start + 10] = struct.pack("<H", entry.compress_type)
    data[start + 14 : start + 26] = struct.pack(
        "<III", entry.CRC, entry.compress_size, entry.file_size
    )
    return bytes(data)


def _bytes(make: Callable[[], bytes]) -> Maker:
    return lambda path: path.write_bytes(make()) and None


def fifo(path: Path) -> None:
    """Make a pipe that nobody writes to."""
    os.mkfifo(path)


_PLAIN = _state(b"a", _tensor(b"U\x010", b"(I1\nt"))

CHECKPOINTS: dict[str, Maker] = {
    **{f"pickle: {name}": _bytes(lambda c=content: c) for name, content in PICKLES.items()},
    **{
        f"archive: {name}": _bytes(lambda c=content: _torch_archive(c))
        for name, content in PICKLES.items()
    },
    **{
        f"legacy: {name}": _bytes(lambda c=content: _legacy(c))
        for name, content in PICKLES.items()
        if name.startswith(("code", "dicts", "tuples", "memo"))
    },
    "archive: storage of 3 GB in 3 MB": _bytes(lambda: _bomb("archive/data/0", _PLAIN)),
    "archive: pickle of 3 GB in 3 MB": _bytes(lambda: _bomb("archive/data.pkl", b"")),
    "archive: two entries of a name": _bytes(
        lambda: _archive(
            [("a/data.pkl", _PLAIN), ("a/data/0", b"\0" * 4), ("a/data/0", b"x" * 4)]
        )
    ),
    "archive: 20,000 entries": _bytes(
        lambda: _archive([("archive/data.pkl", _PLAIN)] + [(f"a/{n}", b"") for n in range(20_000)])
    ),
    "archive: encrypted": _bytes(lambda: _encrypted(_torch_archive(_PLAIN))),
    "archive: cut": _bytes(lambda: _torch_archive(_PLAIN)[:-30]),
    "archive: script": _bytes(
        lambda: _archive(
            [("a/constants.pkl", pickle.dumps(Payload(), 2)), ("a/data.pkl", PICKLES["code"]),
             ("a/code/__torch__.py", b"import os")]
        )
    ),
    "a pipe": fifo,
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path),
}  # fmt: skip


def _encrypted(archive: bytes) -> bytes:
    """Set the flag of encryption in all headers."""
    data = bytearray(archive)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(mark)
        while start >= 0:
            data[start + offset] |= 1
            start = data.find(mark, start + 1)
    return bytes(data)


def _safetensors(header: str | bytes, data: bytes = b"", length: int | None = None) -> Maker:
    def make(path: Path) -> None:
        text = header.encode() if isinstance(header, str) else header
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)

    return make


def _entry(shape: str, start: int = 0, end: int = 4, kind: str = "F32") -> str:
    return f'{{"dtype": "{kind}", "shape": {shape}, "data_offsets": [{start}, {end}]}}'


SAFETENSORS: dict[str, Maker] = {
    "header of 2^60 bytes": _safetensors("{}", length=2**60),
    "header 100,000 deep": _safetensors('{"a": ' + "[" * _DEEP + "]" * _DEEP + "}"),
    "header of another type": _safetensors("[1, 2]"),
    "entry of another type": _safetensors('{"a": [1]}'),
    "not UTF-8": _safetensors(b"\xff\xfe{}"),
    "shape of 10^18": _safetensors(f'{{"a": {_entry("[1000000000, 1000000000]")}}}', b"\0" * 4),
    "negative shape": _safetensors(f'{{"a": {_entry("[-1]")}}}', b"\0" * 4),
    "shape of booleans": _safetensors(f'{{"a": {_entry("[true]")}}}', b"\0" * 4),
    "shape of 10^6 dimensions": _safetensors(
        f'{{"a": {_entry("[" + "1, " * 999_999 + "1]")}}}', b"\0" * 4
    ),
    "two tensors of a name": _safetensors(
        f'{{"a": {_entry("[1]")}, "a": {_entry("[1]", 4, 8)}}}', b"\0" * 8
    ),
    "overlapping tensors": _safetensors(
        f'{{"a": {_entry("[1]")}, "b": {_entry("[1]")}}}', b"\0" * 4
    ),
    "offsets outside": _safetensors(f'{{"a": {_entry("[1]", 2**62, 2**62 + 4)}}}', b"\0" * 4),
    "unknown type": _safetensors(f'{{"a": {_entry("[1]", kind="F99")}}}', b"\0" * 4),
    "layer 39999999": _safetensors(
        f'{{"transformer.resblocks.39999999.ln_1.weight": {_entry("[1]")}}}', b"\0" * 4
    ),
    "20,000 tensors": _safetensors(
        "{" + ", ".join(f'"{n}": {_entry("[0]", 0, 0)}' for n in range(20_000)) + "}"
    ),
    "cut": _safetensors(f'{{"a": {_entry("[1]")}}}'),
    "empty": _bytes(lambda: b""),
    "a pipe": fifo,
}


# Vocabularies


def _npz(**changes: object) -> Maker:
    fields: dict = {
        "names": np.array(["cat", "dog"]),
        "embeddings": np.eye(2, 4, dtype=np.float32),
        "templates": np.array(["a {}"]),
        "encoder": np.array("{}"),
    }

    def make(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **(fields | changes))

    return make


def _npy(shape: str, descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _vocabulary_with(
    name: str, content: bytes, method: int = zipfile.ZIP_STORED, megabytes: int = 0
) -> Maker:
    """Return a maker of a vocabulary with an array of these bytes, and zeros after them."""

    def make(path: Path) -> None:
        _npz()(path)
        with zipfile.ZipFile(path) as archive:
            entries = [(n, archive.read(n)) for n in archive.namelist() if n != f"{name}.npy"]
        zeros = _zeros(megabytes)
        path.write_bytes(_archive([*entries, (f"{name}.npy", content + zeros)], method))

    return make


VOCABULARIES: dict[str, Maker] = {
    "code": _npz(names=np.array([Payload()], object)),
    "a bare array": lambda path: path.write_bytes(_npy("(1,)") + b"\0" * 4) and None,
    "a pickle": _bytes(lambda: PICKLES["code"]),
    "shape of 10^12": _vocabulary_with("embeddings", _npy("(1000000, 1000000)")),
    "negative shape": _vocabulary_with("embeddings", _npy("(-1, 4)")),
    "header 5,000 deep": _vocabulary_with("embeddings", _npy("(" * 5000 + ")" * 5000)),
    "embeddings of 128 MB in 128 kB": _vocabulary_with(
        "embeddings", _npy("(2, 16777216)"), zipfile.ZIP_DEFLATED, 128
    ),
    "two arrays of a name": lambda path: _npz()(path) or _append(path, "names.npy"),
    "encrypted": lambda path: (
        _npz()(path) or path.write_bytes(_encrypted(path.read_bytes())) and None
    ),
    "encoder 100,000 deep": _npz(encoder=np.array("[" * _DEEP + "]" * _DEEP)),
    "encoder of another type": _npz(encoder=np.array("[1]")),
    "encoder of numbers": _npz(encoder=np.arange(3)),
    "names of numbers": _npz(names=np.arange(2)),
    "names in a table": _npz(names=np.array([["cat"], ["dog"]])),
    "texts as embeddings": _npz(embeddings=np.array([["a"], ["b"]])),
    "complex embeddings": _npz(embeddings=np.ones((2, 4), complex)),
    "more names": _npz(names=np.array(["cat", "dog", "cow"])),
    "no dimension": _npz(embeddings=np.float32(1), names=np.array("cat")),
    "cut": lambda path: _npz()(path) or path.write_bytes(path.read_bytes()[:-40]) and None,
    "not an archive": _bytes(lambda: b"hello"),
    "empty": _bytes(lambda: b""),
    "a pipe": fifo,
}  # fmt: skip


def _append(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, _npy("(1,)", "'<U3'") + "cow".encode("utf-32-le"))


NAMES: dict[str, Maker] = {
    "JSON 100,000 deep": _bytes(lambda: b"[" * _DEEP + b"]" * _DEEP),
    "JSON of another type": _bytes(lambda: b"12"),
    "JSON of other entries": _bytes(lambda: b'{"categories": [1, null, {"name": 3}]}'),
    "JSON with 10^6 digits": _bytes(lambda: b"9" * 10**6),
    "one line of 64 MB": _bytes(lambda: b"x" * (64 * _MEGABYTE)),
    "not UTF-8": _bytes(lambda: b"\xff\xfe\0"),
    "NUL": _bytes(lambda: b"cat\0dog"),
    "a pickle": _bytes(lambda: PICKLES["code"]),
    "empty": _bytes(lambda: b""),
    "a pipe": fifo,
    "a folder": lambda path: path.mkdir(),
}


def _tokenizer(**changes: object) -> Maker:
    """Return a maker of a ``tokenizer.json`` of four pieces with other values of its keys."""
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "a": 3}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
    content = {"version": "1.0", "added_tokens": [], "normalizer": None, "model": model} | changes
    return _bytes(lambda: json.dumps(content).encode())


TOKENIZERS: dict[str, Maker] = {
    "JSON 100,000 deep": _bytes(lambda: b'{"model":' * _DEEP + b"1" + b"}" * _DEEP),
    "JSON of another type": _bytes(lambda: b'{"model": [1]}'),
    "JSON of 72 MB": _bytes(lambda: b'{"model": "' + b"x" * (72 * _MEGABYTE) + b'"}'),
    "a key twice": _bytes(lambda: b'{"model": {}, "model": {}}'),
    "a slow expression": _tokenizer(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed"}
    ),
    "an unknown step": _tokenizer(normalizer={"type": "Exec", "content": "id"}),
    "steps of another type": _tokenizer(normalizer={"type": "Sequence", "normalizers": [1, [2]]}),
    "a damaged table": _tokenizer(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "//////////8="}
    ),
    "ids of 2^31": _tokenizer(
        model={"type": "BPE", "vocab": {"<pad>": 0, "<eos>": 1, "a": 2**31}, "merges": []}
    ),
    "negative ids": _tokenizer(
        model={"type": "BPE", "vocab": {"<pad>": -1, "<eos>": 1}, "merges": []}
    ),
    "merges of no pieces": _tokenizer(
        model={"type": "BPE", "vocab": {"<pad>": 0, "<eos>": 1}, "merges": [["x", "y"]]}
    ),
    "unigrams without scores": _tokenizer(
        model={"type": "Unigram", "vocab": [["<pad>", "x"]], "unk_id": 7}
    ),
    "a pickle": _bytes(lambda: PICKLES["code"]),
    "not UTF-8": _bytes(lambda: b'{"model": "\xff\xfe"}'),
    "protobuf of lengths": _bytes(lambda: b"\x0a\xff\xff\xff\xff\x0f" * 100),
    "empty": _bytes(lambda: b""),
    "a pipe": fifo,
    "a folder": lambda path: path.mkdir(),
}


# Model directories


def _with_card(change: Callable[[dict], object]) -> Maker:
    """Return a maker that changes the card of a copied model directory."""

    def make(directory: Path) -> None:
        path = directory / "card.json"
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return make


def _with_size(name: str, value: object) -> Maker:
    def change(card: dict) -> None:
        found = [0]

        def walk(node: object) -> None:
            for key, inner in node.items() if isinstance(node, dict) else ():
                if key == name:
                    node[key] = value
                    found[0] += 1
                else:
                    walk(inner)

        walk(card)
        if not found[0]:
            raise RuntimeError(f"cards have no {name}")

    return _with_card(change)


def _with_file(name: str, content: bytes) -> Maker:
    def make(directory: Path) -> None:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def _replaced(name: str, maker: Maker) -> Maker:
    def make(directory: Path) -> None:
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        maker(path)

    return make


_JSON_FILES = {
    "100,000 deep": b"[" * _DEEP + b"]" * _DEEP,
    "of another type": b"[1, 2]",
    "a text": b'"x"',
    "of 10^6 digits": b"9" * 10**6,
    "not UTF-8": b"\xff\xfe{}",
    "empty": b"",
    "NaN": b'{"format": NaN}',
}
DIRECTORIES: dict[str, Maker] = {
    **{
        f"{name} {what}": _with_file(name, content)
        for name in ("card.json", "params/_METADATA", "params/manifest.ocdbt")
        for what, content in _JSON_FILES.items()
    },
    **{
        f"card with {key} {value!r}": _with_size(key, value)
        for key in ("layers", "width", "heads", "embed_dim", "vocab_size")
        for value in (10**7, 10**30, -1, 0, 1.5, "x", None, [1])
    },
    "card: a pipe": _replaced("card.json", fifo),
    "_METADATA: a pipe": _replaced("params/_METADATA", fifo),
    "manifest: a pipe": _replaced("params/manifest.ocdbt", fifo),
    "parameters: a file": _replaced("params", _bytes(lambda: b"x")),
}
