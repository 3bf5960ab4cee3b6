"""Images, tables, annotations and data folders that were made to do harm."""

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from campaigns.hostile_checkpoints import CANARY, PICKLES, Maker, deflated_zeros, fifo
from campaigns.layouts import LAYOUTS, Entry, image_bytes
from campaigns.layouts import write as write_layout

_DEEP = 100_000
_MEGABYTE = 2**20


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        checksum = zlib.crc32(kind + data)
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)]
    return b"".join(parts)


def _zlib_zeros(megabytes: int) -> bytes:
    """Return zlib data of zeros."""
    checksum = (megabytes * _MEGABYTE % 65521) << 16 | 1
    return b"\x78\xda" + deflated_zeros(megabytes) + struct.pack(">I", checksum)


def _eps() -> bytes:
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"
        b"newpath 0 0 64 64 rectfill\nshowpage\n%%EOF\n"
    )


def _scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan comes many times."""
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1024, 1024, 3), np.uint8)
    Image.fromarray(pixels).resize((2048, 2048)).save(file, "JPEG", progressive=True, quality=30)
    data = file.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def _gif(width: int, height: int, frames: int = 1) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02D\x01\0"
    return head + frame * frames + b";"


def _tiff(tags: list[tuple[int, int, int, int]]) -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


IMAGES: dict[str, bytes | Callable[[], bytes]] = {
    "EPS": _eps(),
    "EPS with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 30, len(_eps()), 0, 0, 0, 0)
    + b"\xff\xff" + _eps(),
    "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF",
    "PNG of 0 x 0": _png(0, 0, (b"IDAT", zlib.compress(b""))),
    "GIF of 0 x 0": _gif(0, 0),
    "PPM of 0 x 0": b"P6\n0 0\n255\n",
    "PNG of 65,000 x 65,000": lambda: _png(65_000, 65_000, (b"IDAT", zlib.compress(b"\0" * 10**6))),
    "PNG of 2^31 x 2^31": _png(2**31 - 1, 2**31 - 1, (b"IDAT", b"")),
    "PNG of 16,000 x 8,000": lambda: _png(
        16_000, 8_000, (b"IDAT", _zlib_zeros(367))
    ),
    "PNG with a text of 1 GB": lambda: _png(
        8, 8, (b"zTXt", b"a\0\0" + _zlib_zeros(1024)), (b"IDAT", b"")
    ),
    "PNG with a profile of 1 GB": lambda: _png(
        8, 8, (b"iCCP", b"a\0\0" + _zlib_zeros(1024)), (b"IDAT", b"")
    ),
    "PNG with 10^5 chunks": lambda: _png(8, 8, *[(b"tEXt", b"a\0b")] * 10**5, (b"IDAT", b"")),
    "JPEG with 100 scans": lambda: _scans(100),
    "GIF of 65,535 x 65,535": _gif(65_535, 65_535),
    "GIF of 10^6 frames": lambda: _gif(8, 8, 10**6),
    "TIFF of 2^31 x 2^31": _tiff([(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1), (258, 3, 1, 8)]),
    "TIFF with a tag of 2^32 values": _tiff([(256, 4, 1, 8), (257, 4, 2**32 - 1, 8)]),
    "TIFF that is its own next": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "PPM with 10^7 blanks": lambda: b"P6\n" + b" " * 10**7 + b"1 1\n255\nxyz",
    "BMP of 2^31 x 2^31": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "ICO of many entries": b"\0\0\1\0\xff\xff" + b"\0" * 1000,
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + b"\0" * 60,
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "a pickle": PICKLES["code"],
    "cut": image_bytes(1)[:100],
    "empty": b"",
}  # fmt: skip


def _write(content: bytes | Callable[[], bytes]) -> Maker:
    return lambda path: path.write_bytes(content() if callable(content) else content) and None


IMAGE_FILES: dict[str, Maker] = {
    **{name: _write(content) for name, content in IMAGES.items()},
    "a pipe": fifo,
    "a folder": lambda path: path.mkdir(),
}

_JSON_VALUES = {
    "100,000 deep": b"[" * _DEEP + b"]" * _DEEP,
    "of another type": b"[1, 2]",
    "of 10^6 digits": b"9" * 10**6,
    "not UTF-8": b"\xff\xfe{}",
    "empty": b"",
}


def _sparse(gigabytes: int) -> Maker:
    def make(path: Path) -> None:
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(0, os.SEEK_END)
            file.truncate(file.tell() + gigabytes * 2**30)

    return make


def _in(layout: str, change: Callable[[Path], object], count: int = 10) -> Maker:
    """Return a maker of a data set of good records with one change."""

    def make(folder: Path) -> None:
        write_layout(LAYOUTS[layout], folder, LAYOUTS[layout].entries(count))
        change(folder)

    return make


def _file(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content() if callable(content) else content)


def _append(name: str, content: bytes, times: int = 1) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(b"\n" + content * times)

    return change


def _as_pipe(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def _tables(layout: str, name: str) -> dict[str, Maker]:
    return {
        "a line of 64 MB": _in(layout, _append(name, b"a", 64 * _MEGABYTE)),
        "a line of 1 GB": _in(layout, lambda folder: _sparse(1)(folder / name)),
        "10^5 quotation marks": _in(layout, _append(name, b'"\n', 10**5)),
        "10^5 empty lines": _in(layout, _append(name, b"\n", 10**5)),
        "a line 100,000 deep": _in(layout, _append(name, _JSON_VALUES["100,000 deep"])),
        "a line of 10^6 digits": _in(layout, _append(name, b"9", 10**6)),
        "NUL": _in(layout, _append(name, b"\0\0\0")),
        "not UTF-8": _in(layout, _append(name, b"\xff\xfe\xfd")),
        "an image of EPS": _in(layout, _file("1.jpg", _eps())),
        "an image that is a pipe": _in(layout, _as_pipe("1.jpg")),
        "a pipe": _in(layout, _as_pipe(name)),
        "empty": _in(layout, _file(name, b"")),
    }


JSON_LINES = _tables("JSON lines", "table.jsonl")
CSV = _tables("CSV", "table.csv")
TSV = _tables("TSV", "table.tsv")
TSV_PAIRS: dict[str, Maker] = {
    "a row of 3 GB": _in("TSV pairs", lambda folder: _sparse(3)(folder / "images.tsv")),
    "a text of 3 GB": _in("TSV pairs", lambda folder: _sparse(3)(folder / "text.tsv")),
    "offsets of 10^30": _in("TSV pairs", _file("images.lineidx", b"0\n" + b"9" * 30)),
    "offsets of 10^6 digits": _in("TSV pairs", _file("images.lineidx", b"9" * 10**6)),
    "negative offsets": _in("TSV pairs", _file("images.lineidx", b"0\n-5\n")),
    "offsets of a pipe": _in("TSV pairs", _as_pipe("images.lineidx")),
    "a list of 10^18": _in("TSV pairs", _file("images.linelist", b"1000000000000000000")),
    "a pipe": _in("TSV pairs", _as_pipe("images.tsv")),
    "a pipe of texts": _in("TSV pairs", _as_pipe("text.tsv")),
}


def _coco(change: Callable[[dict], object]) -> Maker:
    def edit(folder: Path) -> None:
        path = folder / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return _in("COCO", edit)


_ANNOTATIONS = "annotations/instances_train.json"
COCO: dict[str, Maker] = {
    **{name: _in("COCO", _file(_ANNOTATIONS, value)) for name, value in _JSON_VALUES.items()},
    "runs of 10^12 cells": _coco(
        lambda c: c["annotations"][0].update(
            segmentation={"size": [10**6, 10**6], "counts": [10**12]}
        )
    ),
    "a polygon of 10^6 points": _coco(
        lambda c: c["annotations"][0].update(segmentation=[[1.0, 2.0] * 10**6])
    ),
    "sizes of 10^9": _coco(lambda c: c["images"][0].update(width=10**9, height=10**9)),
    "sizes of 10^400": _coco(lambda c: c["images"][0].update(width=10**400)),
    "boxes of 2^63": _coco(lambda c: c["annotations"][0].update(bbox=[2**63] * 4)),
    "ids of 10^400": _coco(lambda c: c["annotations"][0].update(id=10**400, image_id=10**400)),
    "two images of an id": _coco(lambda c: c["images"][1].update(id=0)),
    "two categories of an id": _coco(lambda c: c["categories"][1].update(id=1)),
    "a name of 10^6 letters": _coco(lambda c: c["images"][0].update(file_name="a" * 10**6)),
    "a name with NUL": _coco(lambda c: c["images"][0].update(file_name="a\0.jpg")),
    "categories of another type": _coco(lambda c: c.update(categories=[1, None, {"id": []}])),
    "an image of EPS": _in("COCO", _file("train/1.jpg", _eps())),
    "an image that is a pipe": _in("COCO", _as_pipe("train/1.jpg")),
    "a pipe": _in("COCO", _as_pipe(_ANNOTATIONS)),
}

_ENTITIES = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
_XML = "<annotation><object><name>{}</name></object></annotation>"
VOC: dict[str, Maker] = {
    "entities in entities": _in("Pascal VOC", _file(
        "Annotations/1.xml",
        f'<!DOCTYPE x [<!ENTITY a0 "ha">{_ENTITIES}]>{_XML.format("&a9;")}'.encode(),
    )),
    "an entity of 10^5 letters 10^5 times": _in("Pascal VOC", _file(
        "Annotations/1.xml",
        f'<!DOCTYPE x [<!ENTITY a "{"a" * 10**5}">]>{_XML.format("&a;" * 10**5)}'.encode(),
    )),
    "a file as entity": _in("Pascal VOC", _file(
        "Annotations/1.xml",
        f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>{_XML.format("&a;")}'.encode(),
    )),
    "100,000 deep": _in("Pascal VOC", _file(
        "Annotations/1.xml", b"<a>" * _DEEP + b"</a>" * _DEEP
    )),
    "10^5 attributes": _in("Pascal VOC", _file(
        "Annotations/1.xml",
        ("<annotation " + " ".join(f'a{n}="1"' for n in range(10**5)) + "/>").encode(),
    )),
    "sizes of 10^400": _in("Pascal VOC", _file(
        "Annotations/1.xml",
        f"<annotation><size><width>{'9' * 400}</width><height>1</height></size></annotation>"
        .encode(),
    )),
    "sizes of 10^5 digits": _in("Pascal VOC", _file(
        "Annotations/1.xml",
        f"<annotation><size><width>{'9' * 10**5}</width><height>1</height></size></annotation>"
        .encode(),
    )),
    "a list of 3 GB": _in(
        "Pascal VOC", lambda folder: _sparse(3)(folder / "ImageSets/Main/train.txt")
    ),
    "a pipe": _in("Pascal VOC", _as_pipe("Annotations/1.xml")),
    "a list that is a pipe": _in("Pascal VOC", _as_pipe("ImageSets/Main/train.txt")),
    "an image that is a pipe": _in("Pascal VOC", _as_pipe("JPEGImages/1.jpg")),
}  # fmt: skip

_ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
YOLO: dict[str, Maker] = {
    "aliases of aliases": _in("YOLO", _file("data.yaml", (_ALIASES + "names: *a29\n").encode())),
    "aliases of aliases as a path": _in(
        "YOLO", _file("data.yaml", (_ALIASES + "train: *a29\nnames: [cat, dog, cow]\n").encode())
    ),
    "merged aliases": _in("YOLO", _file("data.yaml", (
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
        + "names: [cat, dog, cow]\n"
    ).encode())),
    "code": _in("YOLO", _file(
        "data.yaml", f'names: !!python/object/apply:os.system [\'touch "${CANARY}"\']'.encode()
    )),
    "5,000 deep": _in("YOLO", _file("data.yaml", b"names: " + b"[" * 5000 + b"]" * 5000)),
    "100,000 deep": _in("YOLO", _file("data.yaml", b"names: " + b"[" * _DEEP + b"]" * _DEEP)),
    "an alias of itself": _in("YOLO", _file("data.yaml", b"names: &a [*a]")),
    "a scalar": _in("YOLO", _file("data.yaml", b"3")),
    "another type": _in("YOLO", _file("data.yaml", b"names: 3\ntrain: [1]\nkpt_shape: x")),
    "a number of 10^6 digits": _in("YOLO", _file("data.yaml", b"names: " + b"9" * 10**6)),
    "10^9 keypoints": _in("YOLO", _file(
        "data.yaml", b"names: [cat, dog, cow]\nkpt_shape: [1000000000, 3]"
    )),
    "names of 10^9": _in("YOLO", _file("data.yaml", b"names: {1000000000: cat}")),
    "not UTF-8": _in("YOLO", _file("data.yaml", b"\xff\xfe\xfd")),
    "a label of 64 MB": _in("YOLO", _file("labels/1.txt", lambda: b"0 " * (32 * _MEGABYTE))),
    "labels that are a pipe": _in("YOLO", _as_pipe("labels/1.txt")),
    "an image that is a pipe": _in("YOLO", _as_pipe("images/1.jpg")),
    "a pipe": _in("YOLO", _as_pipe("data.yaml")),
}  # fmt: skip


def _prepared(change: Callable[[dict], object]) -> Maker:
    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return _in("prepared captions", edit)


def _record(header: dict | bytes, rest: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(text) if length is None else length) + text + rest


def _records(layout: str, *records: bytes) -> Maker:
    def make(folder: Path) -> None:
        entries: list[Entry] = [*LAYOUTS[layout].entries(10), *((record,) for record in records)]
        write_layout(LAYOUTS[layout], folder, entries)

    return make


def _compressed_zeros(folder: Path) -> None:
    (path,) = folder.glob("shard-*")
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(bytes(1024 * _MEGABYTE))
    writer.close()


_CAPTION = {"kind": "image_text", "key": "a", "captions": ["a cat"], "size": [48, 64]}
_BOXES = {"kind": "detection", "key": "a", "captions": [], "boxes": 1, "image_id": 1}


def _box(values: list[float], number: int = 0) -> bytes:
    return np.array(values, "<f4").tobytes() + struct.pack("<iB", number, 0) + image_bytes(1)


PREPARED: dict[str, Maker] = {
    **{
        f"manifest {name}": _in("prepared captions", _file("manifest.json", value))
        for name, value in _JSON_VALUES.items()
    },
    "shards of another type": _prepared(lambda m: m.update(shards=[1, None])),
    "shards as a text": _prepared(lambda m: m.update(shards="x")),
    "no description": _prepared(lambda m: m.pop("description")),
    "a description of another type": _prepared(lambda m: m.update(description=[1])),
    "10^18 records": _prepared(lambda m: m.update(count=10**18)),
    "a shard above the folder": _prepared(lambda m: m["shards"][0].update(name="../../x")),
    "a shard with NUL": _prepared(lambda m: m["shards"][0].update(name="a\0b")),
    "sizes of another type": _prepared(lambda m: m.update(sizes=3)),
    "sizes with code": lambda folder: (
        _prepared(lambda m: m.update(sizes={"name": "sizes.npy"}))(folder),
        (folder / "sizes.npy").write_bytes(PICKLES["code"]),
    )[0],
    "captions of numbers": _records("prepared captions", _record({**_CAPTION, "captions": [1, 2]})),
    "captions as a text": _records("prepared captions", _record({**_CAPTION, "captions": "abc"})),
    "tags of numbers": _records("prepared captions", _record({**_CAPTION, "tags": [None, 3]})),
    "sizes of texts": _records("prepared captions", _record({**_CAPTION, "size": ["a", []]})),
    "sizes of 10^400": _records("prepared captions", _record({**_CAPTION, "size": [10**400, 1]})),
    "a key of another type": _records("prepared captions", _record({**_CAPTION, "key": [1]})),
    "a header 100,000 deep": _records("prepared captions", _record(_JSON_VALUES["100,000 deep"])),
    "a header of 2^32 bytes": _records("prepared captions", _record(b"{}", length=2**32 - 1)),
    "an image of EPS": _records("prepared captions", _record(_CAPTION, _eps())),
    "a record of 1 GiB zeros": _in("prepared captions", _compressed_zeros),
    "a pipe": _in("prepared captions", _as_pipe("manifest.json")),
    "a shard that is a pipe": _in("prepared captions", _as_pipe("shard-00000.arrayrecord")),
}
PREPARED_BOXES: dict[str, Maker] = {
    "boxes of infinity": _records("prepared boxes", _record(_BOXES, _box([0, 0, np.inf, 9]))),
    "boxes of NaN": _records("prepared boxes", _record(_BOXES, _box([0, 0, np.nan, 9]))),
    "boxes of 2^63": _records("prepared boxes", _record(_BOXES, _box([0, 0, 2.0**63, 9]))),
    "boxes turned round": _records("prepared boxes", _record(_BOXES, _box([9, 9, 1, 1]))),
    "class 10^6": _records("prepared boxes", _record(_BOXES, _box([0, 0, 9, 9], 10**6))),
    "class -1": _records("prepared boxes", _record(_BOXES, _box([0, 0, 9, 9], -1))),
    "2^62 boxes": _records("prepared boxes", _record({**_BOXES, "boxes": 2**62})),
    "-1 boxes": _records("prepared boxes", _record({**_BOXES, "boxes": -1})),
    "boxes as a text": _records("prepared boxes", _record({**_BOXES, "boxes": "x"})),
    "an image id of text": _records("prepared boxes", _record({**_BOXES, "image_id": "x"})),
}


def _tar(*members: tuple[str, bytes, dict]) -> Maker:
    def make(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for number in range(3):
                _add(archive, f"{number}.jpg", image_bytes(number))
                _add(archive, f"{number}.txt", b"a cat")
            for name, content, changes in members:
                _add(archive, name, content, **changes)

    return make


def _add(archive: tarfile.TarFile, name: str, content: bytes, **changes: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def _with_size(field: bytes) -> Maker:
    """Return a maker of an archive whose last header states another size."""

    def make(path: Path) -> None:
        _tar(("9.jpg", b"x", {}))(path)
        data = bytearray(path.read_bytes())
        start = data.rfind(b"9.jpg")
        data[start + 124 : start + 136] = field.ljust(12, b"\0")
        data[start + 148 : start + 156] = b" " * 8
        checksum = sum(data[start : start + 512])
        data[start + 148 : start + 156] = b"%06o\0 " % checksum
        path.write_bytes(data)

    return make


WEBDATASET: dict[str, Maker] = {
    "a size of 2^95": _with_size(b"\x80" + b"\xff" * 11),
    "a negative size": _with_size(b"\xff" * 12),
    "a size of 8 GB": _with_size(b"77777777777\0"),
    "a size of letters": _with_size(b"abc"),
    "a pipe in it": _tar(("9.jpg", b"", {"type": tarfile.FIFOTYPE})),
    "a link": _tar(("9.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
    "a sparse file": _tar(("9.jpg", b"", {"type": tarfile.GNUTYPE_SPARSE})),
    "a name above the folder": _tar(("../../9.jpg", image_bytes(1), {})),
    "a caption 100,000 deep": _tar(("9.json", _JSON_VALUES["100,000 deep"], {})),
    "a caption of 10^6 digits": _tar(("9.json", b"9" * 10**6, {})),
    "a pickle": _tar(("9.pkl", PICKLES["code"], {}), ("9.pyd", PICKLES["code"], {})),
    "an image of EPS": _tar(("9.jpg", _eps(), {}), ("9.txt", b"a dog", {})),
    "two members of a name": _tar(("0.txt", b"a dog", {})),
    "10^5 members": _tar(*[(f"{n}.x", b"", {}) for n in range(10**5)]),
    "a file of 3 GB zeros": _sparse(3),
    "empty": lambda path: path.write_bytes(b"") and None,
    "a pipe": fifo,
}


def _tfds(name: str, content: bytes | None) -> Maker:
    """Return a maker of a TFDS folder that names a class of a module beside it."""

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "dataset_info.json").write_text(
            json.dumps({
                "name": "tiny", "version": "1.0.0", "fileFormat": "array_record",
                "splits": [{"name": "train", "shardLengths": ["1"], "numBytes": "1",
                            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}],
            })
        )  # fmt: skip
        features = {"pythonClassName": "data.tiny.evil.X", "featuresDict": {"features": {}}}
        (folder / "features.json").write_text(json.dumps(features))
        if content is not None:
            (folder / name).write_bytes(content)
        # The readers start here, with this folder on the path as `python -m` has it.
        module = folder.parent / "data" / "tiny"
        module.mkdir(parents=True, exist_ok=True)
        (module / "evil.py").write_text(
            f'import os, pathlib\npathlib.Path(os.environ["{CANARY}"]).touch()\n'
        )

    return make


TFDS: dict[str, Maker] = {
    "a class of another module": _tfds("", None),
    **{
        f"{name} {what}": _tfds(name, value)
        for name in ("features.json", "dataset_info.json")
        for what, value in _JSON_VALUES.items()
    },
    "a class of os": _tfds(
        "features.json", b'{"pythonClassName": "os.system", "content": "touch x"}'
    ),
    "a class that is a number": _tfds("features.json", b'{"pythonClassName": 3}'),
}
