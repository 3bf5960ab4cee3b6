"""Records of a source to training canvases: rates of one core, and of threads and workers.

The pipeline is the one of training, with the numbers of ``configs/pretrain.py:rn50_coco``.
"""

import argparse
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from benchmarks.machine import available_cpus
from benchmarks.timing import Work, run_rows
from regionclip_jax.assembly.sources import SourceChoice, open_image_text_source
from regionclip_jax.assembly.streams import assign_buckets
from regionclip_jax.data.loading.examples import Shard
from regionclip_jax.data.loading.pipeline import image_text_batches
from regionclip_jax.data.prepare.read_speed import measure_reading
from regionclip_jax.settings import CaptionDataSettings
from regionclip_jax.text.tokenizer import TokenizerSource

# (height, width) of the synthetic images: COCO's most common sizes.
_SIZES = ((480, 640), (480, 640), (480, 640), (640, 480), (427, 640))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", default="coco_folder", help="data.source of a recipe")
    parser.add_argument("--path", help="path of the source; default: synthetic images")
    parser.add_argument("--split", default="", help='split of a COCO folder, e.g. "train2017"')
    parser.add_argument("--max_skipped_fraction", type=float, default=0.01, help="as in a recipe")
    parser.add_argument("--images", type=int, default=64, help="number of images")
    parser.add_argument("--short_side", type=int, default=800, help="other sizes in proportion")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of each process")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0: not timed")
    parser.add_argument("--batch", type=int, default=96, help="records of a step")
    parser.add_argument("--step_ms", type=float, default=100, help="time of a step")


def measure(args: argparse.Namespace) -> dict:
    """Print and return ``rows``, ``reading`` and ``cores_needed``."""
    if args.workers and not flags.FLAGS.is_parsed():
        flags.FLAGS(["benchmark.py"])  # grain's workers need parsed flags
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        choice = SourceChoice(args.source, args.path or "", args.split, args.max_skipped_fraction)
        if args.path is None:
            draw_coco(Path(scratch), args.images)
            choice = SourceChoice("coco_folder", scratch, "drawn", max_skipped_fraction=0.0)
        source = open_image_text_source(choice, "data")
        reading = measure_reading(source, scratch, args.images)
        print(
            f"  one core: reads {reading.source:.1f} records/s ({reading.array_record:.1f} from "
            f"ArrayRecord), decodes {reading.decoding:.1f}, images of "
            f"{reading.image_bytes / 1e3:.0f} kB"
        )
        rows = run_rows(_works(args, source), args.repeats, peak=None)
    needed = args.batch / (args.step_ms / 1e3) / rows[0]["items_per_s"]
    print(f"  {args.batch} records every {args.step_ms:g} ms need {needed:.1f} such cores")
    return {"rows": rows, "reading": reading._asdict(), "cores_needed": needed}


def _works(args, source) -> Iterator[Work]:
    plans = [("one core, into canvases", 0, 0), (f"{args.threads} threads", args.threads, 0)]
    if args.workers:
        name = f"{args.workers} workers of {args.threads} threads"
        plans.append((name, args.threads, args.workers))
    for name, num_threads, num_workers in plans:
        with contextlib.closing(_stream(args, source, num_threads, num_workers)) as stream:
            # The first batch starts threads and workers, so it is not one of the timed runs.
            yield Work(name, lambda s=stream: next(s)[1], items=args.batch, unit="records")


def _stream(args, source, num_threads: int, num_workers: int):
    paper = CaptionDataSettings()
    share = args.short_side / paper.short_sides[0]
    settings = dataclasses.replace(
        paper,
        short_sides=(args.short_side,),
        max_long_side=round(paper.max_long_side * share),
        canvas_sizes=tuple(
            tuple(-(-round(side * share) // 32) * 32 for side in size)
            for size in paper.canvas_sizes
        ),
        num_threads=num_threads,
        num_workers=num_workers,
    )
    buckets = assign_buckets(settings, source)
    shard = Shard(args.batch, 0, 1)
    return image_text_batches(
        source,
        settings,
        shard,
        tokenizer=TokenizerSource("clip"),
        seed=0,
        start_record=0,
        buckets=buckets,
    )


def draw_coco(root: Path, num_images: int) -> None:
    """Write a COCO folder, split "drawn", of JPEGs with COCO's sizes: smooth shapes and noise."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir()
    (root / "drawn").mkdir()
    images, captions = [], []
    for number in range(1, num_images + 1):
        height, width = _SIZES[number % len(_SIZES)]
        shapes = rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
        image = Image.fromarray(shapes).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (height, width, 1))
        pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
        name = f"{number:012d}.jpg"
        Image.fromarray(pixels).save(root / "drawn" / name, quality=90)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        text = "A cat sits on a wooden table next to a bowl."
        captions.append({"id": number, "image_id": number, "caption": text})
    annotations = {"images": images, "annotations": captions}
    (root / "annotations" / "captions_drawn.json").write_text(json.dumps(annotations))
