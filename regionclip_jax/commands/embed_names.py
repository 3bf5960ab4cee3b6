"""Embed a list of concepts as a vocabulary file: names, embeddings, prompts and encoder.

    regionclip embed names --checkpoint checkpoints/clip_rn50 \\
        --concepts concepts.txt --output concepts.npz

Embeddings are averaged over the prompts and not normalized, like the reference's.
"""

import argparse

from regionclip_jax import load
from regionclip_jax.commands.options import add_require_platform, start
from regionclip_jax.failures import one_line
from regionclip_jax.text.names import resolve_names


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="model directory")
    parser.add_argument(
        "--concepts",
        metavar="NAMES",
        required=True,
        help='"cat, remote control", a names file: one name a line, or .json with categories',
    )
    parser.add_argument("--output", metavar="FILE", required=True, help=".npz file to write")
    parser.add_argument(
        "--templates", choices=("clip", "plain"), default="clip", help="81 prompts, or 5 short ones"
    )
    add_require_platform(parser)
    options = parser.parse_args(arguments)
    if not options.output.endswith(".npz"):
        parser.error("--output must end in .npz")
    start(options)
    names = resolve_names(options.concepts)
    vocabulary = load(options.checkpoint).vocabulary(names, templates=options.templates)
    vocabulary.save(options.output)
    print(f"{len(names)} names, D = {vocabulary.embeddings.shape[1]}: {options.output}")
    return 0
