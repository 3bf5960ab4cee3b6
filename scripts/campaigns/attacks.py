"""Let each reader of the package read each hostile file, with limits of time and memory.

A reader must end with records, or with an error that commands print without a traceback and that
names the file. Everything else counts: no end, too much memory, another exception, a payload that
ran.
"""

import io
import os
import resource
import shutil
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from campaigns import hostile_checkpoints, hostile_data
from campaigns.children import Limits, Trial
from campaigns.damage import MOST_LINES
from campaigns.hostile_checkpoints import CANARY, Maker
from regionclip_jax.artifacts.model_checkpoint import load_model
from regionclip_jax.artifacts.vocabulary import Vocabulary
from regionclip_jax.assembly.sources import (
    SourceChoice,
    build_boxes_source,
    open_image_text_source,
)
from regionclip_jax.conversion.convert_clip import convert_checkpoint
from regionclip_jax.conversion.convert_localizer import convert_localizer, convert_trunk
from regionclip_jax.conversion.convert_vocabulary import convert_vocabulary
from regionclip_jax.data.loading.captions import choose_caption
from regionclip_jax.data.loading.decoding import decode_image_of, read_any_image
from regionclip_jax.data.sources.image_files import image_size
from regionclip_jax.data.sources.records import RecordError
from regionclip_jax.settings import UserError
from regionclip_jax.text.names import read_names
from regionclip_jax.text.siglip_tokenizer import read_vocabulary

# A reader that works needs a fraction of these; a hostile file makes it need more than any limit.
# Seconds of a loaded machine; one that computes all the time ends after _CPU_SECONDS.
LIMITS = Limits(seconds=120.0, memory=6 * 2**30)
_CPU_SECONDS = 10
# docs/hostile_files.md states at most 2.1 GB, for the largest image.
_MOST_RESIDENT = 9 * 2**28


class Reader(NamedTuple):
    """A reader, the name of its file, and what it may read.

    Attributes:
        refusals: exceptions whose text is complete for users.
    """

    read: Callable[[Path], object]
    name: str
    attacks: dict[str, Maker]
    refusals: tuple[type[Exception], ...] = (UserError, OSError)


def _convert(convert: Callable[..., object]) -> Callable[[Path], object]:
    return lambda path: convert(path, path.parent / "model")


def _convert_vocabulary(path: Path) -> object:
    names = path.parent / "names.txt"
    names.write_text("cat\ndog\n")
    return convert_vocabulary(path, names, path.parent / "model")


_CONVERTERS: dict[str, Callable[[Path], object]] = {
    "model .pt": _convert(convert_checkpoint),
    "localizer .pkl": _convert(convert_localizer),
    "trunk .pkl": _convert(convert_trunk),
    "embeddings .pth": _convert_vocabulary,
}


def _read_source(boxes: bool, kind: str, split: str = "", name: str = "") -> Callable[[Path], None]:
    """Return a reader of all records, as a training reads them."""

    def read(path: Path) -> None:
        choice = SourceChoice(kind, str(path / name if name else path), split, 0.9)
        source = (build_boxes_source if boxes else open_image_text_source)(choice, "data")
        for index in range(len(source)):
            try:
                record = source[index]
                decode_image_of(record, repr(source))
                if boxes:
                    _require_boxes(record)
                else:
                    caption = choose_caption(record, np.random.default_rng(0), source=repr(source))
                    if not isinstance(caption, str):
                        raise TypeError(f"caption {caption!r} of record {index}")
            except RecordError:
                continue

    return read


def _require_boxes(record) -> None:
    """Raise an error for boxes that no training can use; the reader should have skipped them."""
    if not np.isfinite(record.boxes).all() or (record.boxes[:, 2:] < record.boxes[:, :2]).any():
        raise ArithmeticError(f"taken as a record: boxes {record.boxes.tolist()}")
    if len(record.classes) and not 0 <= record.classes.min() <= record.classes.max() < 3:
        raise ArithmeticError(f"taken as a record: classes {record.classes.tolist()}")


_FUNCTION = (ValueError, OSError)
_IMAGE = (*_FUNCTION, RecordError)

READERS: dict[str, Reader] = {
    **{
        name: Reader(convert, f"file{name.split()[1]}", hostile_checkpoints.CHECKPOINTS)
        for name, convert in _CONVERTERS.items()
    },
    "model .safetensors": Reader(
        _convert(convert_checkpoint), "file.safetensors", hostile_checkpoints.SAFETENSORS
    ),
    "vocabulary": Reader(Vocabulary.load, "file.npz", hostile_checkpoints.VOCABULARIES),
    "names .txt": Reader(read_names, "names.txt", hostile_checkpoints.NAMES, _FUNCTION),
    "names .json": Reader(read_names, "names.json", hostile_checkpoints.NAMES, _FUNCTION),
    "tokenizer": Reader(read_vocabulary, "tokenizer.json", hostile_checkpoints.TOKENIZERS),
    "model directory": Reader(load_model, "model", hostile_checkpoints.DIRECTORIES),
    "image": Reader(read_any_image, "image.jpg", hostile_data.IMAGE_FILES, _IMAGE),
    "image size": Reader(image_size, "image.png", hostile_data.IMAGE_FILES, _IMAGE),
    "JSON lines": Reader(
        _read_source(False, "caption_table", name="table.jsonl"), "data", hostile_data.JSON_LINES
    ),
    "CSV": Reader(_read_source(False, "caption_table", name="table.csv"), "data", hostile_data.CSV),
    "TSV": Reader(_read_source(False, "caption_table", name="table.tsv"), "data", hostile_data.TSV),
    "TSV pairs": Reader(_read_source(False, "tsv_pairs"), "data", hostile_data.TSV_PAIRS),
    "webdataset": Reader(_read_source(False, "webdataset"), "a.tar", hostile_data.WEBDATASET),
    "prepared captions": Reader(_read_source(False, "array_record"), "data", hostile_data.PREPARED),
    "prepared boxes": Reader(
        _read_source(True, "array_record"), "data", hostile_data.PREPARED_BOXES
    ),
    "TFDS captions": Reader(_read_source(False, "tfds", "train"), "data", hostile_data.TFDS),
    "TFDS boxes": Reader(_read_source(True, "tfds", "train"), "data", hostile_data.TFDS),
    "COCO": Reader(_read_source(True, "coco_folder", "train"), "data", hostile_data.COCO),
    "Pascal VOC": Reader(_read_source(True, "pascal_voc", "train"), "data", hostile_data.VOC),
    "YOLO": Reader(_read_source(True, "yolo_labels"), "data", hostile_data.YOLO),
}


def trials() -> list[Trial]:
    """Return a trial for each reader and each of its attacks."""
    return [
        Trial("attacks", name, number)
        for name, reader in READERS.items()
        for number in range(len(reader.attacks))
    ]


def name_of(trial: Trial) -> str:
    """Return the name of the attack of a trial."""
    return list(READERS[trial.part].attacks)[trial.number]


def attack(model: Path, trial: Trial) -> dict:
    """Let a reader read one hostile file; call it in a process of its own.

    Args:
        model: a sound model directory to change.
    """
    reader = READERS[trial.part]
    make = reader.attacks[name_of(trial)]
    result: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        canary = root / "canary"
        os.environ[CANARY] = str(canary)
        _add_interpreters(root / "bin")
        path = root / "read" / reader.name
        path.parent.mkdir()
        if trial.part == "model directory":
            shutil.copytree(model, path)
        make(path)
        # As `python -m`, which looks for modules in the current folder first.
        os.chdir(path.parent)
        sys.path.insert(0, "")
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = _peak_resident()
        begin = time.monotonic()
        result |= _judge(reader, path)
        result["seconds"] = round(time.monotonic() - begin, 2)
        result["megabytes"] = (_peak_resident() - before) >> 20
        if canary.exists():
            return result | {"outcome": "executed"}
        if result["megabytes"] << 20 > _MOST_RESIDENT:
            return result | {"outcome": "memory", "text": f"{result['megabytes']} MB"}
    return result


def _judge(reader: Reader, path: Path) -> dict:
    try:
        reader.read(path)
    except reader.refusals as error:
        text = str(error)
        if len(text.splitlines()) > MOST_LINES:
            return {"outcome": "too many lines", "text": text[:300]}
        if path.name not in text:
            text = f"{type(error).__name__}: {text}"
            return {"outcome": "unnamed file", "text": text[:300]}
        return {"outcome": "refused"}
    except MemoryError as error:
        return {"outcome": "memory", "text": f"MemoryError: {error}"[:300]}
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return {
            "outcome": "traceback",
            "text": f"{type(error).__name__} at {place}: {error}"[:300],
        }
    return {"outcome": "read"}


def _add_interpreters(folder: Path) -> None:
    """Put programs on the path that a reader of images may start; they touch the canary."""
    folder.mkdir()
    for name in ("gs", "gswin32c", "rsvg-convert", "convert"):
        path = folder / name
        path.write_text(f'#!/bin/sh\ntouch "${CANARY}"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def _peak_resident() -> int:
    """Return the largest resident memory of this process since ``clear_refs``, in bytes."""
    for line in io.StringIO(Path("/proc/self/status").read_text()):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no VmHWM")
