"""Source for tar shards of images and captions: WebDataset's format, as img2dataset writes it.

The key of ``000000012.jpg``, ``000000012.txt`` and ``000000012.json`` is the part before the first
dot. A sample has an image (jpg, jpeg, png, webp) and a caption: the ``txt``, or else ``caption`` of
the ``json``. Other files are ignored. Headers are read once, at the start; images and captions on
access.
"""

import concurrent.futures
import itertools
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from regionclip_jax.data.sources.image_opening import MOST_BYTES
from regionclip_jax.data.sources.records import (
    ImageTextRecord,
    PackedTexts,
    RecordError,
    locate,
)
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.tar_members import Member, read_members
from regionclip_jax.data.sources.text_tables import LONGEST_LINE

_IMAGES = ("jpg", "jpeg", "png", "webp")
# Shards whose headers are read concurrently; on a network disk most of the time is latency.
_NUM_THREADS = 8


class WebDatasetSource:
    """Samples of all shards of a folder, in the order of the shards' names.

    Attributes:
        report: counts of shards, samples and skipped entries.
        named: report key -> first few names of its entries.

    Args:
        path: a folder of ``*.tar``, or one of them.
        max_skipped_fraction: share of the samples that may lack an image or a caption, and of
            the shards that may be truncated; samples before the truncation are used.

    Raises:
        FileNotFoundError: no shard.
        ValueError: too many entries are skipped.
    """

    def __init__(self, path: str | os.PathLike, *, max_skipped_fraction: float = 0.0):
        self._path = pathlib.Path(path)
        self._shards = sorted(self._path.glob("*.tar")) if self._path.is_dir() else [self._path]
        if not self._shards or not self._shards[0].is_file():
            raise FileNotFoundError(
                f"{self._path} has no shard: expected *.tar, such as img2dataset's 00000.tar"
            )
        with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
            shards = list(pool.map(_Shard, self._shards))
        self._ends = list(itertools.accumulate(len(shard.keys) for shard in shards))
        self._keys = [shard.keys for shard in shards]
        self._spans = [shard.spans for shard in shards]

        self.report = {"shards": len(shards), "samples": self._ends[-1]}
        self.named: dict[str, list[str]] = {}
        cut = [f"{s.path.name} {s.problem}" for s in shards if s.problem]
        if len(cut) > max_skipped_fraction * len(shards):
            raise ValueError(
                f"{self._path}: {len(cut)} of {len(shards)} shards are cut short or damaged, more "
                f"than a max_skipped_fraction of {max_skipped_fraction:.2%} allows: "
                f"{'; '.join(cut[:3])}; "
                "download them again, or raise max_skipped_fraction to use what comes before"
            )
        if cut:
            self.report["shards_cut_short"], self.named["shards_cut_short"] = len(cut), cut[:3]
        samples, files = SkippedEntries("samples"), SkippedEntries("files")
        for shard in shards:
            for kind, key in shard.incomplete:
                samples.add(kind, f"{shard.path.name}: {key}")
            for name in shard.doubles:
                files.add("there_twice", f"{shard.path.name}: {name}")
        for skipped, total in (
            (samples, self._ends[-1] + samples.report.total()),
            (files, sum(shard.num_files for shard in shards)),
        ):
            skipped.require_few(
                self._path,
                total,
                max_skipped_fraction,
                "expected key.jpg with key.txt or key.json, each once; repair the shards",
            )
            self.report |= skipped.report
            self.named |= skipped.named

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> ImageTextRecord:
        part, row = locate(self, self._ends, index)
        shard, key = self._shards[part], self._keys[part][row]
        image_at, image_size, text_at, text_size, is_json = self._spans[part][row].tolist()
        name = f"{shard.name}: {key}"
        if image_size > MOST_BYTES or text_size > LONGEST_LINE:
            what = f"has an image of {image_size} bytes and a caption of {text_size}"
            what += f", expected at most {MOST_BYTES} and {LONGEST_LINE}"
            raise RecordError(repr(self), name, what)
        try:
            # Opened anew each time: thread-safe, and the source stays picklable.
            with open(shard, "rb", buffering=0) as file:
                image = os.pread(file.fileno(), image_size, image_at)
                text = os.pread(file.fileno(), text_size, text_at)
        except OSError as error:
            raise RecordError(repr(self), name, f"cannot be read: {error}") from error
        if (len(image), len(text)) != (image_size, text_size):
            raise RecordError(repr(self), name, "the shard is shorter than at the start")
        try:
            caption = text.decode("utf-8-sig")
            if is_json:
                content = json.loads(caption)
                caption = content.get("caption") if isinstance(content, dict) else None
        except (ValueError, RecursionError) as error:
            raise RecordError(repr(self), name, f"caption cannot be read: {error}") from error
        if not isinstance(caption, str):
            raise RecordError(repr(self), name, f"expected a text as caption, found {caption!r}")
        return ImageTextRecord(key, image, (caption,))

    def index_parts(self) -> Iterator[bytes]:
        """Yield keys, and offsets of images and captions; see ``fingerprint``."""
        for keys, spans in zip(self._keys, self._spans, strict=True):
            yield from keys.index_parts()
            yield spans.tobytes()

    def sizes(self) -> None:
        """Return None: the sizes are unknown without opening the images."""
        return None

    def __repr__(self) -> str:
        return f"WebDatasetSource({str(self._path)!r})"


class _Shard:
    """Positions of the images and captions of one tar, from its headers.

    ``spans`` has a row for each key: offset and size of the image, of the text, and 1 if the text
    is JSON. ``incomplete`` and ``doubles`` name the skipped samples and files.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        members, self.problem = read_members(path)
        self.num_files = len(members)
        self.doubles: list[str] = []
        samples: dict[str, dict[str, Member]] = {}
        for member in members:
            folder, _, last = member.name.rpartition("/")
            stem, _, ending = last.partition(".")
            role = "image" if ending.lower() in _IMAGES else ending.lower()
            sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
            if role in sample and role in ("image", "txt", "json"):
                self.doubles.append(member.name)
            sample.setdefault(role, member)
        self.incomplete: list[tuple[str, str]] = []
        keys, rows = [], []
        for key, sample in samples.items():
            image, text = sample.get("image"), sample.get("txt") or sample.get("json")
            if image is None or text is None:
                kind = "without_image" if image is None else "without_caption"
                self.incomplete.append((kind, key))
                continue
            keys.append(key)
            rows.append((*image[1:], *text[1:], "txt" not in sample))
        self.keys = PackedTexts(keys)
        self.spans = np.array(rows, np.int64).reshape(-1, 5)
