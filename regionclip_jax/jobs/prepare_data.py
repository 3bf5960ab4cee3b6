"""Prepare a source as a directory for training, for scripts/prepare_data.py."""

import time
from collections.abc import Callable
from pathlib import Path

from absl import logging

from regionclip_jax.assembly.sources import SourceChoice, build_boxes_source, open_image_text_source
from regionclip_jax.data.prepare.preparation import prepare
from regionclip_jax.data.prepare.read_speed import measure_reading
from regionclip_jax.data.sources.skipped import SkipCounter
from regionclip_jax.reporting.stages import readable_seconds

_SECONDS_BETWEEN_LINES = 10
# A gain below a tenth does not justify another copy of the images.
_WORTHWHILE = 1.1


def run(
    choice: SourceChoice,
    output: Path,
    *,
    boxes: bool,
    limit: int | None,
    short_side: int | None,
    check: bool,
    shard_size: int,
    num_workers: int,
) -> dict:
    """Prepare a source, or resume, and return the manifest; see ``data.prepare.preparation``.

    Args:
        choice: a source, with the keys of a recipe.
        boxes: images with boxes, otherwise with captions.
    """
    source = _open(choice, boxes)
    manifest = prepare(
        source,
        output,
        origin={
            "source": choice.source,
            "path": str(Path(choice.path).resolve()),
            "split": choice.split,
            # Counts of the source, including entries skipped before reading.
            "report": dict(getattr(source, "report", {})),
        },
        limit=limit,
        shard_size=shard_size,
        short_side=short_side,
        check=check,
        num_workers=num_workers,
        counter=SkipCounter(choice.max_skipped_fraction, choice.min_skipped_records),
        report=log_progress(),
    )
    for reason, entry in manifest["skipped"].items():
        logging.info("skipped, %s: %d, e.g. %s", reason, entry["count"], entry["first"][0])
    num_shards = len(manifest["shards"])
    gigabytes = sum(shard["bytes"] for shard in manifest["shards"]) / 1e9
    logging.info(
        "%s: %d records, %d shards, %.3g GB", output, manifest["count"], num_shards, gigabytes
    )
    return manifest


def _open(choice: SourceChoice, boxes: bool):
    open_it = build_boxes_source if boxes else open_image_text_source
    return open_it(choice, "data")


def log_progress(clock: Callable[[], float] = time.monotonic) -> Callable[[int, int, int], None]:
    """Return a function that logs rate and remaining time about every ten seconds.

    Returns:
        A function of the numbers of records done by earlier runs, done now, and in total. It
        measures from the first record on, which excludes the start of the processes.
    """
    first = last = None

    def report(done_before: int, done: int, total: int) -> None:
        nonlocal first, last
        now = clock()
        if first is None:
            if done > done_before:
                first, last = (now, done), now
            return
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = (done - first[1]) / (now - first[0])
        left = readable_seconds((total - done) / rate) if rate else "unknown time"
        logging.info("%d/%d | %.4g records/s | %s left", done, total, rate, left)

    return report


def compare_reading(
    choice: SourceChoice, output: Path, *, boxes: bool, num_records: int
) -> list[str]:
    """Return lines on the read speed of the source and the gain of preparation.

    Args:
        choice: a source, with the keys of a recipe.
        output: path of the prepared data; a temporary part of it is written beside.
        boxes: images with boxes, otherwise with captions.
        num_records: number of records to read.
    """
    source = _open(choice, boxes)
    output.parent.mkdir(parents=True, exist_ok=True)
    speed = measure_reading(source, output.parent, num_records)
    share = speed.decoding / (speed.decoding + speed.source)
    verdict = (
        f"preparing pays: a core that loads would be {speed.gain:.2f} times as fast"
        if speed.gain >= _WORTHWHILE
        else "preparing changes little for the loader: it decodes most of the time (smaller "
        "images, --short-side, help with that)"
    )
    return [
        f"{len(source)} records, images of {speed.image_bytes / 1e3:.1f} kB on average: "
        f"{len(source) * speed.image_bytes / 1e9:.2f} GB",
        f"reading from the source:   {speed.source:8.0f} records/s",
        f"reading from ArrayRecord:  {speed.array_record:8.0f} records/s",
        f"decoding:                  {speed.decoding:8.0f} images/s a core",
        f"the source's share of a loader's time: {share:.0%}",
        verdict,
    ]
