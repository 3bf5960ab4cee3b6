"""Run a recipe: ``regionclip train --config=configs/pretrain.py --workdir=DIR``."""

import sys
from collections.abc import Callable

from absl import app, flags

from regionclip_jax import main as recipe_runner


def main() -> None:
    """Run the recipe that ``sys.argv`` names, as ``python -m regionclip_jax.main`` does."""
    run(recipe_runner.parse_flags)


def run(parse: Callable[[list[str]], list[str]]) -> None:
    """Start absl's application with the flags of ``regionclip_jax.main``."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        # absl's own --help prints the flags of the file that Python was started with.
        print(f"usage: {sys.argv[0]} --config=RECIPE --workdir=DIR [--config.KEY=VALUE ...]")
        print(flags.FLAGS.module_help(recipe_runner))
        sys.exit()
    app.run(recipe_runner.main, flags_parser=parse)
