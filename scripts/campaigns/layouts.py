"""Small data sets in the formats that the sources read, as lists of entries that can be mutated.

An entry is a record's part of the data set, as one or more pieces of bytes. ``read`` returns what
the package makes of each record, None for a skipped one.
"""

import base64
import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from regionclip_jax.assembly.sources import (
    SourceChoice,
    build_boxes_source,
    build_image_source,
    open_image_text_source,
)
from regionclip_jax.data.loading.captions import choose_caption
from regionclip_jax.data.loading.decoding import decode_image, decode_image_of
from regionclip_jax.data.prepare.writers import ShardWriter, make_manifest, shard_name
from regionclip_jax.data.sources.array_record_format import (
    DETECTION,
    IMAGE_TEXT,
    MANIFEST,
    encode_record,
)
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord, RecordError
from regionclip_jax.ops.host_boxes import host_scale_boxes
from regionclip_jax.settings import ImageDataSettings

Entry = tuple[bytes, ...]
_SIZE = (48, 64)  # height, width
_NAMES = ("cat", "dog", "sheep")


class Layout(NamedTuple):
    """One format.

    Attributes:
        entries: makes this number of entries.
        write: writes entries to an empty folder.
        read: what the package reads, by the number of the entry.
        lines: an entry is a line, so mutations must not add or remove lines.
        is_json: the pieces are JSON objects, whose values change, not their bytes.
    """

    entries: Callable[[int], list[Entry]]
    write: Callable[[Path, list[Entry]], None]
    read: Callable[[Path], dict[str, Any]]
    lines: bool = False
    is_json: bool = False
    # Why one entry may lead to a refusal of all.
    may_refuse: str = ""


@functools.cache
def image_bytes(number: int, kind: str = "JPEG") -> bytes:
    """Return a small image, another one for each number."""
    rng = np.random.default_rng(number)
    height, width = _SIZE
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(file, kind)
    return file.getvalue()


def _boxes(number: int) -> np.ndarray:
    return np.array([[1, 2, 20 + number % 7, 30], [5, 5, 40, 40 - number % 5]], np.float32)


# Images


def _image_entries(count: int) -> list[Entry]:
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
    return [(image_bytes(number, kinds[number % len(kinds)]),) for number in range(count)]


def _write_images(folder: Path, entries: list[Entry]) -> None:
    for number, (data,) in enumerate(entries):
        (folder / str(number)).write_bytes(data)


def _read_images(folder: Path) -> dict[str, Any]:
    return {
        path.name: _or_skipped(
            lambda path=path: decode_image(path.read_bytes(), source="images", key=path.name)
        )
        for path in folder.iterdir()
    }


def _write_image_folder(folder: Path, entries: list[Entry]) -> None:
    for number, (data,) in enumerate(entries):
        (folder / f"{number}.jpg").write_bytes(data)


def _read_image_folder(folder: Path) -> dict[str, Any]:
    source = build_image_source(ImageDataSettings(source="image_folder", path=str(folder)))

    def use(index: int) -> np.ndarray:
        return decode_image_of(source[index], repr(source))

    # The order is that of names, so the tenth comes after the first.
    names = sorted((path.stem for path in folder.iterdir()), key=lambda stem: f"{stem}.jpg")
    return {name: _or_skipped(lambda index=index: use(index)) for index, name in enumerate(names)}


def _or_skipped(use: Callable[[], Any]) -> Any:
    try:
        found = use()
    except RecordError:
        return None
    return found.tobytes() if isinstance(found, np.ndarray) else found


# Prepared directories


def _caption_entries(count: int) -> list[Entry]:
    return [
        (
            encode_record(
                ImageTextRecord(str(n), image_bytes(n), (f"a cat, {n} dogs",), ("red",), _SIZE)
            ),
        )
        for n in range(count)
    ]


def _box_entries(count: int) -> list[Entry]:
    classes, crowd = np.array([0, 2], np.int32), np.zeros(2, bool)
    return [
        (
            encode_record(
                DetectionRecord(str(n), image_bytes(n), _boxes(n), classes, crowd, n, size=_SIZE)
            ),
        )
        for n in range(count)
    ]


def _write_prepared(kind: str) -> Callable[[Path, list[Entry]], None]:
    def write(folder: Path, entries: list[Entry]) -> None:
        with ShardWriter(folder / shard_name(0)) as writer:
            for (data,) in entries:
                writer.write(data, kind)
        shards = [{"name": shard_name(0), "count": len(entries)}]
        manifest = make_manifest(kind, shards, {"category_names": list(_NAMES)})
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return write


def _read_captions(folder: Path, kind: str = "array_record") -> dict[str, Any]:
    source = open_image_text_source(SourceChoice(kind, str(folder), "", 0.9), "data")

    def use(index: int) -> tuple:
        record = source[index]
        pixels = decode_image_of(record, repr(source))
        rng = np.random.default_rng(0)
        drawn = [choose_caption(record, rng, source=repr(source)) for _ in range(3)]
        return pixels.tobytes(), drawn

    return {str(index): _or_skipped(lambda index=index: use(index)) for index in range(len(source))}


def _read_boxes(kind: str, by_key: bool) -> Callable[[Path], dict[str, Any]]:
    def read(folder: Path) -> dict[str, Any]:
        split = "" if kind in ("array_record", "yolo_labels", "pascal_voc") else "train"
        source = build_boxes_source(SourceChoice(kind, str(folder), split, 0.9), "data")
        found: dict[str, Any] = {}
        for index in range(len(source)):
            try:
                record = source[index]
                pixels = decode_image_of(record, repr(source))
            except RecordError:
                if not by_key:
                    found[str(index)] = None
                continue
            boxes = host_scale_boxes(record.boxes, np.ones(2, np.float32))
            names = [source.category_names[number] for number in record.classes]
            key = Path(record.key).stem if by_key else str(index)
            found[key] = pixels.tobytes(), boxes.tobytes(), names, record.crowd.tolist()
        return found

    return read


# Tables of captions


def _table_entries(row: str) -> Callable[[int], list[Entry]]:
    return lambda count: [(row.format(n).encode(),) for n in range(count)]


def _write_table(name: str, header: str) -> Callable[[Path, list[Entry]], None]:
    def write(folder: Path, entries: list[Entry]) -> None:
        _write_named_images(folder, len(entries))
        lines = [line for (line,) in entries]
        (folder / name).write_bytes(b"\n".join([*([header.encode()] if header else []), *lines]))

    return write


def _write_named_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(image_bytes(number))


def _read_table(name: str) -> Callable[[Path], dict[str, Any]]:
    def read(folder: Path) -> dict[str, Any]:
        choice = SourceChoice("caption_table", str(folder / name), "", 0.9)
        source = open_image_text_source(choice, "data")
        records = (source[index] for index in range(len(source)))
        # Another row may name the same image, so all captions of an image stand for it.
        return {Path(record.key).stem: set(record.captions) for record in records}

    return read


def _tsv_pair_entries(count: int) -> list[Entry]:
    return [
        (
            f"{n}\t{base64.b64encode(image_bytes(n)).decode()}".encode(),
            f"{n}\t{json.dumps({'captions': [f'a cat, {n} dogs']})}".encode(),
        )
        for n in range(count)
    ]


def _write_tsv_pairs(folder: Path, entries: list[Entry]) -> None:
    for column, name in enumerate(("images.tsv", "text.tsv")):
        lines = [entry[column] for entry in entries]
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")


# Annotations of boxes


def _coco_entries(count: int) -> list[Entry]:
    height, width = _SIZE
    entries = []
    for n in range(count):
        image = {"id": n, "file_name": f"{n}.jpg", "height": height, "width": width}
        boxes = [
            {
                "id": 2 * n + k,
                "image_id": n,
                "category_id": k + 1,
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "area": float((x2 - x1) * (y2 - y1)),
                "iscrowd": 0,
            }
            for k, (x1, y1, x2, y2) in enumerate(_boxes(n))
        ]
        entries.append(tuple(json.dumps(piece).encode() for piece in (image, *boxes)))
    return entries


def _write_coco(folder: Path, entries: list[Entry]) -> None:
    _write_named_images(folder / "train", len(entries))
    (folder / "annotations").mkdir()
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(_NAMES)]
    images = b", ".join(entry[0] for entry in entries)
    boxes = b", ".join(piece for entry in entries for piece in entry[1:])
    (folder / "annotations" / "instances_train.json").write_bytes(
        b'{"images": [%s], "annotations": [%s], "categories": %s}'
        % (images, boxes, json.dumps(categories).encode())
    )


def _yolo_entries(count: int) -> list[Entry]:
    return [
        (f"0 0.5 0.5 0.25 0.{n % 50 + 10}\n2 0.4 0.4 0.5 0.5\n".encode(),) for n in range(count)
    ]


def _write_yolo(folder: Path, entries: list[Entry]) -> None:
    _write_named_images(folder / "images", len(entries))
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text(json.dumps({"names": list(_NAMES)}))
    for number, (text,) in enumerate(entries):
        (folder / "labels" / f"{number}.txt").write_bytes(text)


def _voc_entries(count: int) -> list[Entry]:
    height, width = _SIZE
    return [
        (
            (
                f"<annotation><filename>{n}.jpg</filename><size><width>{width}</width>"
                f"<height>{height}</height><depth>3</depth></size>"
                + "".join(
                    f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1:.0f}"
                    f"</xmin><ymin>{y1:.0f}</ymin><xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax>"
                    "</bndbox></object>"
                    for name, (x1, y1, x2, y2) in zip(_NAMES, _boxes(n), strict=False)
                )
                + "</annotation>"
            ).encode(),
        )
        for n in range(count)
    ]


def _write_voc(folder: Path, entries: list[Entry]) -> None:
    _write_named_images(folder / "JPEGImages", len(entries))
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    names = "\n".join(str(number) for number in range(len(entries)))
    (folder / "ImageSets" / "Main" / "train.txt").write_text(names)
    for number, (text,) in enumerate(entries):
        (folder / "Annotations" / f"{number}.xml").write_bytes(text)


def _read_voc(folder: Path) -> dict[str, Any]:
    source = build_boxes_source(SourceChoice("pascal_voc", str(folder), "train", 0.9), "data")
    found = {}
    for index in range(len(source)):
        record = source[index]
        names = [source.category_names[number] for number in record.classes]
        found[Path(record.key).stem] = record.boxes.tobytes(), names
    return found


LAYOUTS = {
    "images": Layout(_image_entries, _write_images, _read_images),
    "image folder": Layout(_image_entries, _write_image_folder, _read_image_folder),
    "prepared captions": Layout(_caption_entries, _write_prepared(IMAGE_TEXT), _read_captions),
    "prepared boxes": Layout(
        _box_entries, _write_prepared(DETECTION), _read_boxes("array_record", False)
    ),
    "JSON lines": Layout(
        _table_entries('{{"image": "{0}.jpg", "caption": "a cat, {0} dogs"}}'),
        _write_table("table.jsonl", ""),
        _read_table("table.jsonl"),
        lines=True,
    ),
    "CSV": Layout(
        _table_entries("{0}.jpg,a cat and {0} dogs"),
        _write_table("table.csv", "image,caption"),
        _read_table("table.csv"),
        lines=True,
    ),
    "TSV": Layout(
        _table_entries("{0}.jpg\ta cat, {0} dogs"),
        _write_table("table.tsv", "image\tcaption"),
        _read_table("table.tsv"),
        lines=True,
    ),
    "TSV pairs": Layout(
        _tsv_pair_entries,
        _write_tsv_pairs,
        lambda folder: _read_captions(folder, "tsv_pairs"),
        lines=True,
    ),
    "COCO": Layout(_coco_entries, _write_coco, _read_boxes("coco_folder", True), is_json=True),
    "YOLO": Layout(
        _yolo_entries,
        _write_yolo,
        _read_boxes("yolo_labels", True),
        may_refuse="a line of more numbers may mean that all lines have further columns",
    ),
    "Pascal VOC": Layout(_voc_entries, _write_voc, _read_voc),
}


def write(layout: Layout, folder: Path, entries: list[Entry]) -> None:
    """Write entries to a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layout.write(folder, entries)
