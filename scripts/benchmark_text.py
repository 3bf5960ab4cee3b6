"""Measure captions per second of the tokenizer and of the search for concepts, on one core.

    python scripts/benchmark_text.py --captions data/coco/annotations/captions_val2017.json
    python scripts/benchmark_text.py

Without a file, synthetic captions are used. Rates are of processor time, which depends little on
other processes, and the best of the repeats is printed.
"""

import argparse
import functools
import itertools
import time

from regionclip_jax.data.prepare.caption_files import read_captions
from regionclip_jax.text.concepts import count_concepts
from regionclip_jax.text.tokenizer import tokenizer_named

_MADE_UP = "A {} {} standing on a wooden table next to the {} of a kitchen."
_WORDS = ("small", "brown", "dog", "bowl", "window", "refrigerator", "woman", "skateboard")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", metavar="FILE", help="a file that build_concepts.py reads")
    parser.add_argument("--number", type=int, default=20_000, help="largest number of captions")
    parser.add_argument("--concepts", action="store_true", help="time the search for concepts too")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    captions = read_captions(options.captions) if options.captions else made_up()
    captions = list(itertools.islice(captions, options.number))
    tokenize = functools.partial(tokenizer_named("clip"), context_length=77)
    rows = {
        "tokenize, all at once": lambda: tokenize(captions),
        "tokenize, one a call": lambda: [tokenize([caption]) for caption in captions],
        "tokenize, text that needs cleaning": lambda: tokenize([f"{c} &amp; é" for c in captions]),
    }
    if options.concepts:
        rows["concepts"] = lambda: count_concepts(captions)
    tokenize(captions[:1])  # loads the vocabulary
    for name, work in rows.items():
        rate = len(captions) / min(seconds(work) for _ in range(options.repeats))
        print(f"{name:36s} {rate:10.0f} captions/s", flush=True)


def seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def made_up():
    for three in itertools.cycle(itertools.permutations(_WORDS, 3)):
        yield _MADE_UP.format(*three)


if __name__ == "__main__":
    main()
