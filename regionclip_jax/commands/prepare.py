"""Prepare images with captions or boxes for training: ArrayRecord shards with a manifest.

    regionclip prepare --source coco_folder --path data/coco --split train2017 \\
        --output data/coco_prepared
    regionclip prepare --verify data/coco_prepared
    regionclip prepare --source coco_folder --path data/coco --split train2017 \\
        --output data/coco_prepared --benchmark

Every image is decoded once to find broken ones; the bytes are copied unchanged. The same command
continues a stopped or killed run. Training reads the directory with
--config.data.source=array_record --config.data.path=OUTPUT. See docs/prepare_data.md.
"""

import argparse
import os
import sys
from pathlib import Path

from regionclip_jax.failures import one_line


@one_line(ValueError, RuntimeError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="as data.source in a recipe, e.g. coco_folder")
    parser.add_argument("--path", help="folder or file of the source")
    parser.add_argument("--split", default="", help='of a COCO folder, e.g. "train2017"')
    parser.add_argument("--output", metavar="DIR", type=Path, help="directory to write")
    parser.add_argument("--boxes", action="store_true", help="images with boxes, not captions")
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N records")
    parser.add_argument(
        "--short-side", metavar="PIXELS", type=int,
        help="store larger images as JPEG (quality 95) of this short side",
    )  # fmt: skip
    parser.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True,
        help="decode every image (default); --no-check reads headers alone",
    )  # fmt: skip
    parser.add_argument("--shard-size", type=int, default=8192, help="records of a shard")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--max-skipped-fraction",
        type=float,
        default=0.01,
        help="stop when a larger share is skipped ...",
    )
    parser.add_argument(
        "--min-skipped-records", type=int, default=100, help="... and at least this many"
    )
    parser.add_argument(
        "--benchmark", nargs="?", const=512, metavar="N", type=int,
        help="write nothing; read N random records (512) and report whether preparing pays",
    )  # fmt: skip
    parser.add_argument("--verify", metavar="DIR", type=Path, help="check a directory's checksums")
    options = parser.parse_args(arguments)
    if options.verify is None and None in (options.source, options.path, options.output):
        parser.error("give --source, --path and --output, or --verify DIR")
    if options.path is not None and not Path(options.path).exists():
        parser.error(f"--path: {options.path!r} does not exist")
    # Imported here, because worker processes import this file and do not need these modules.
    from regionclip_jax.assembly.sources import SourceChoice
    from regionclip_jax.data.prepare.verification import find_damage
    from regionclip_jax.jobs import prepare_data
    from regionclip_jax.reporting.progress import log_own_progress

    log_own_progress()
    choice = SourceChoice(
        options.source,
        options.path,
        options.split,
        options.max_skipped_fraction,
        options.min_skipped_records,
    )
    try:
        if options.verify is not None:
            damage = find_damage(options.verify, options.workers)
            print("\n".join(damage) or f"{options.verify}: every file is as it was written")
            return 1 if damage else 0
        if options.benchmark is not None:
            lines = prepare_data.compare_reading(
                choice, options.output, boxes=options.boxes, num_records=options.benchmark
            )
            print("\n".join(lines))
            return 0
        prepare_data.run(
            choice, options.output, boxes=options.boxes, limit=options.limit,
            short_side=options.short_side, check=options.check, shard_size=options.shard_size,
            num_workers=options.workers,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
