"""Build a concept pool from captions: their nouns and noun phrases, with counts.

    regionclip concepts --captions data/coco/annotations/captions_train2017.json \\
        --min-count 100 --output concepts.txt

Captions come from COCO's JSON, a table (.tsv, .csv, .jsonl, Flickr8k's captions.txt) or a text file
with one per line. The output has a line ``name TAB count`` for each concept.
--config.concepts.names_file and `regionclip embed names` read it. Needs the extra:
pip install -e ".[concepts]".
"""

import argparse
import os
import time

from absl import logging

from regionclip_jax.data.prepare.caption_files import read_captions
from regionclip_jax.data.sources.skipped import SkippedEntries, describe
from regionclip_jax.extras import require_extra
from regionclip_jax.failures import one_line
from regionclip_jax.reporting.stages import readable_seconds
from regionclip_jax.text.concepts import choose_concepts, count_concepts, write_concepts
from regionclip_jax.text.names import read_names


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", metavar="FILE", nargs="+", required=True)
    parser.add_argument("--output", metavar="FILE", required=True, help=".txt file to write")
    parser.add_argument(
        "--min-count",
        type=int,
        default=100,
        help="least captions that name a concept (100)",
    )
    parser.add_argument(
        "--phrases",
        choices=("nouns", "compounds", "adjectives"),
        default="compounds",
        help='"rack", also "spice rack" (default), also "wooden spice rack"',
    )
    parser.add_argument("--stop", metavar="FILE", help="names file of concepts to exclude")
    parser.add_argument("--add", metavar="FILE", help="names file of concepts for any count")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all cores")
    options = parser.parse_args(arguments)
    if options.min_count < 1 or options.processes < 1:
        parser.error("--min-count and --processes must be at least 1")
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    require_extra("concepts", "finding nouns")
    stop, additions = (read_names(file) if file else () for file in (options.stop, options.add))
    skipped = SkippedEntries("rows")
    total = sum(1 for file in options.captions for _ in read_captions(file, skipped))
    began = time.monotonic()

    def progress(done: int) -> None:
        rate = done / (time.monotonic() - began)
        logging.log_every_n_seconds(
            logging.INFO, "%d of %d captions, %.0f a second, %s left", 10,
            done, total, rate, readable_seconds((total - done) / rate),
        )  # fmt: skip

    counts = count_concepts(
        (caption for file in options.captions for caption in read_captions(file)),
        phrases=options.phrases,
        processes=options.processes,
        progress=progress,
    )
    pool = choose_concepts(counts, options.min_count, stop=stop, additions=additions)
    if not pool:
        raise ValueError(
            f"none of {len(counts.captions)} concepts is named in {options.min_count} of "
            f"{total} captions; give a smaller --min-count"
        )
    write_concepts(options.output, pool)
    if skipped.report:
        print(f"skipped: {describe(skipped.report, skipped.named)}")
    print(f"{len(pool)} concepts of {total} captions: {options.output}")
    return 0
