"""Prepare a source as ArrayRecord shards with several processes; restartable at any time.

A shard holds the records of a fixed range of the source, without skipped ones. One process writes a
whole shard, so a shard is a pure function of source and plan. Until the end the directory holds,
beside the complete shards:

    unfinished/plan.json          the arguments of the preparation
    unfinished/shard-00000.json   the note of a complete shard, with its content
    unfinished/*.partial-*        files that are being written

The manifest is moved into place last, and ``unfinished`` is removed. So a directory with a manifest
is complete. Without one, a new call writes the shards that have no note.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from absl import logging

from regionclip_jax.data.prepare.prepared_record import JPEG_QUALITY, Skipped, prepare_record
from regionclip_jax.data.prepare.writers import (
    ShardWriter,
    existing_manifest,
    make_manifest,
    shard_name,
)
from regionclip_jax.data.sources.array_record_format import MANIFEST, UNFINISHED, write_manifest
from regionclip_jax.data.sources.fingerprint import fingerprint
from regionclip_jax.data.sources.records import Source
from regionclip_jax.data.sources.skipped import SkipCounter
from regionclip_jax.files import locked_folder, replace_text
from regionclip_jax.untrusted import read_large_json

SIZES = "sizes.npy"

_SECONDS_BETWEEN_REPORTS = 0.5
_NAMED_SKIPPED = 10


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Arguments that determine the content of every shard."""

    source: Source
    directory: pathlib.Path
    num_records: int
    shard_size: int
    short_side: int | None
    check: bool

    @property
    def num_shards(self) -> int:
        return -(-self.num_records // self.shard_size)

    @property
    def unfinished(self) -> pathlib.Path:
        return self.directory / UNFINISHED

    def records_of(self, shard: int) -> range:
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_records))

    def note_path(self, shard: int) -> pathlib.Path:
        return (self.unfinished / shard_name(shard)).with_suffix(".json")


def prepare(
    source: Source,
    directory: str | os.PathLike,
    *,
    origin: dict,
    limit: int | None,
    shard_size: int,
    short_side: int | None,
    check: bool,
    num_workers: int,
    counter: SkipCounter,
    report: Callable[[int, int, int], object],
) -> dict:
    """Write a source's records, or the remaining ones after an interrupted call.

    Args:
        source: must be picklable; its ``category_names``, if any, are stored.
        directory: directory to create, or the one of an interrupted call with equal arguments.
        origin: JSON values that identify the source.
        limit: number of first records to take; None takes all.
        shard_size: records of the source in one shard.
        short_side, check: see ``prepare_record``.
        num_workers: number of processes.
        counter: counts the skipped records, including those of earlier calls.
        report: called about every second with the numbers of records done by earlier calls, done
            now, and in total.

    Returns:
        The manifest: that of ``write_array_record``, with ``bytes`` and ``sha256`` of each shard
        and of ``sizes`` (int32 [N, 2], height and width as decoded), and ``skipped``: reason ->
        ``count`` and the ``first`` few texts.

    Raises:
        FileExistsError: the directory holds something else, or another process writes it.
        TooManySkipped: too many skipped records; complete shards are kept for a later call.
        ValueError: there is no record to write.
        RuntimeError: a worker process was killed, or the disk is full.
    """
    directory = pathlib.Path(directory)
    num_records = len(source) if limit is None else min(limit, len(source))
    if min(shard_size, num_workers, num_records, 1 if short_side is None else short_side) < 1:
        raise ValueError(
            f"shard_size {shard_size}, num_workers {num_workers}, short_side {short_side} and the "
            f"number of records {num_records} must be at least 1"
        )
    plan = _Plan(source, directory, num_records, shard_size, short_side, check)
    description = _describe(plan, origin)
    if (directory / MANIFEST).exists():
        manifest = existing_manifest(directory, description)
        shutil.rmtree(plan.unfinished, ignore_errors=True)  # a call that was killed at its very end
        return manifest
    with _begun(plan, description):
        shards = range(plan.num_shards)
        notes = {shard: note for shard in shards if (note := _read_note(plan, shard)) is not None}
        # All at once: the share of one shard alone may exceed the limit.
        counter.add(
            sum(len(plan.records_of(shard)) for shard in notes),
            [text for note in notes.values() for _, text in note["skipped"]],
        )
        missing = [shard for shard in shards if shard not in notes]
        _write_shards(plan, missing, min(num_workers, len(missing)), counter, report)
        return _complete(plan, description)


def _describe(plan: _Plan, origin: dict) -> dict:
    description = {
        "source": {**origin, "records": len(plan.source)},
        "records": plan.num_records,
        "shard_size": plan.shard_size,
        "short_side": plan.short_side,
        "jpeg_quality": None if plan.short_side is None else JPEG_QUALITY,
        "checked": plan.check,
    }
    if names := getattr(plan.source, "category_names", ()):
        description["category_names"] = list(names)
    return description


@contextlib.contextmanager
def _begun(plan: _Plan, description: dict) -> Iterator[None]:
    """Create or resume the directory, and lock it for this process."""
    directory, plan_path = plan.directory, plan.unfinished / "plan.json"
    if directory.exists() and any(directory.iterdir()) and not plan.unfinished.is_dir():
        raise FileExistsError(
            f"{directory} exists but holds no prepared data: delete it or choose another path"
        )
    # The data may have changed at the same path since the shards that are there were written.
    plan_facts = {**description, "data": fingerprint(plan.source)}
    plan.unfinished.mkdir(parents=True, exist_ok=True)
    with locked_folder(plan.unfinished, "lock"):
        if plan_path.exists():
            begun = read_large_json(plan_path, "delete the folder, or choose another path")
            if begun != plan_facts:
                begun = begun if isinstance(begun, dict) else {}
                keys = sorted(k for k in begun | plan_facts if begun.get(k) != plan_facts.get(k))
                raise FileExistsError(
                    f"{directory} was begun with other arguments (differing in {', '.join(keys)}): "
                    "give those again, or delete it, or choose another path"
                )
        else:
            replace_text(plan_path, json.dumps(plan_facts, indent=1))
        for folder in (plan.unfinished, directory):
            for partial in folder.glob("*.partial-*"):
                partial.unlink()
        yield


def _write_shards(
    plan: _Plan,
    missing: Sequence[int],
    num_workers: int,
    counter: SkipCounter,
    report: Callable[[int, int, int], object],
) -> None:
    """Distribute the shards over processes; end all of them when one, or this one, fails."""
    done_before = done = plan.num_records - sum(len(plan.records_of(shard)) for shard in missing)
    # Spawned, not forked: the caller may have threads. A worker ends when its pipe breaks, so none
    # outlives a killed caller.
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
    left = iter(missing)
    try:
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, plan), daemon=True)
            process.start()
            workers[ours] = process
            theirs.close()
        busy = set(workers)
        while busy:
            for connection in wait(list(busy), timeout=1):
                try:
                    message = connection.recv()
                except EOFError as error:
                    raise RuntimeError(
                        "a worker process was killed, perhaps for want of memory: start again to "
                        "go on, with fewer workers if it happens again"
                    ) from error
                if isinstance(message, Exception):
                    raise message
                if message is None:
                    shard = next(left, None)
                    connection.send(shard)
                    if shard is None:
                        busy.remove(connection)
                    continue
                num_records, skipped = message
                done += num_records
                counter.add(num_records, skipped)
            report(done_before, done, plan.num_records)
        for process in workers.values():
            process.join()
    finally:
        for connection, process in workers.items():
            process.terminate()
            process.join()
            connection.close()


def _work(connection: Connection, plan: _Plan) -> None:
    """Run a worker: request shards (None), report records and skipped ones, end on None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends this process
    try:
        while True:
            connection.send(None)
            shard = connection.recv()
            if shard is None:
                return
            _write_shard(plan, shard, connection.send)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the caller is gone
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        with contextlib.suppress(OSError):
            connection.send(error)


def _write_shard(plan: _Plan, shard: int, tell: Callable[[tuple[int, list[str]]], object]) -> None:
    partial = plan.unfinished / f"{shard_name(shard)}.partial-{os.getpid()}"
    sizes, skipped = [], []
    told = num_told = 0
    last = time.monotonic()
    with ShardWriter(partial) as writer:
        for number, index in enumerate(plan.records_of(shard), start=1):
            outcome = prepare_record(
                plan.source, index, short_side=plan.short_side, check=plan.check
            )
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
            else:
                writer.write(outcome.data, outcome.kind)
                sizes.append(outcome.size)
            if time.monotonic() - last > _SECONDS_BETWEEN_REPORTS:
                tell((number - num_told, [text for _, text in skipped[told:]]))
                told, num_told, last = len(skipped), number, time.monotonic()
    # Before the shard becomes final: a process whose caller was killed ends here.
    tell((len(plan.records_of(shard)) - num_told, [text for _, text in skipped[told:]]))
    note = {
        "count": writer.count,
        "kinds": sorted(writer.kinds),
        "sides": [side for size in sizes for side in size],
        "skipped": skipped,
    }
    if sizes:
        note |= _seal(partial)
        os.replace(partial, plan.directory / shard_name(shard))
    else:
        partial.unlink()
    content = {"note": note, "sha256": _digest_of_note(note)}
    replace_text(plan.note_path(shard), json.dumps(content, indent=1))


def _digest_of_note(note: dict) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


def _read_note(plan: _Plan, shard: int) -> dict | None:
    """Return the note of a complete shard; None if it has yet to be written.

    A damaged note counts as none: the shard is then written again, to the same bytes.
    """
    path = plan.directory / shard_name(shard)
    try:
        content: Any = read_large_json(plan.note_path(shard), "the shard is written again")
        note = content["note"]
        if content["sha256"] != _digest_of_note(note):
            raise ValueError("another SHA-256")
        if note["count"] and not (path.is_file() and path.stat().st_size == note["bytes"]):
            return None
        # A list of millions would use much memory.
        note["sides"] = np.array(note["sides"], np.int32).reshape(-1, 2)
        note["skipped"] = [(str(reason), str(text)) for reason, text in note["skipped"]]
        fits = len(note["sides"]) == note["count"] and {"kinds", "sha256"} <= note.keys()
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError):
        logging.warning("%s: damaged; its shard is written again", plan.note_path(shard))
        return None
    return note if fits or not note["count"] else None


def _complete(plan: _Plan, description: dict) -> dict:
    """Write sizes and manifest from the notes."""
    notes = [(shard_name(shard), _read_note(plan, shard)) for shard in range(plan.num_shards)]
    sizes = np.concatenate([note["sides"] for _, note in notes])
    skipped: dict[str, dict] = collections.defaultdict(lambda: {"count": 0, "first": []})
    for _, note in notes:
        for reason, text in note["skipped"]:
            skipped[reason]["count"] += 1
            if len(skipped[reason]["first"]) < _NAMED_SKIPPED:
                skipped[reason]["first"].append(text)
    if not len(sizes):
        raise ValueError(
            f"none of the {plan.num_records} records of {plan.source!r} could be used, e.g.: "
            f"{next(iter(skipped.values()))['first'][0]}"
        )
    (kind,) = {kind for _, note in notes for kind in note["kinds"]}
    with open(plan.unfinished / SIZES, "wb") as file:
        np.save(file, sizes)
    sizes_entry = {"name": SIZES, **_seal(plan.unfinished / SIZES)}
    os.replace(plan.unfinished / SIZES, plan.directory / SIZES)
    shards = [
        {"name": name, **{key: note[key] for key in ("count", "bytes", "sha256")}}
        for name, note in notes
        if note["count"]
    ]
    manifest = make_manifest(kind, shards, description, sizes=sizes_entry, skipped=skipped)
    write_manifest(plan.directory, manifest)
    shutil.rmtree(plan.unfinished)
    return manifest


def _seal(path: pathlib.Path) -> dict:
    """Sync a written file to disk, and return its size and checksum."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
