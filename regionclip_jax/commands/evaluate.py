"""Run an evaluation: ``regionclip evaluate --config=configs/evaluate.py --workdir=DIR``."""

import sys

from absl import flags

from regionclip_jax import main as recipe_runner
from regionclip_jax import recipes
from regionclip_jax.commands import train
from regionclip_jax.settings import ConfigError, EvaluateSettings


def main() -> None:
    """Run the evaluation that ``sys.argv`` names; refuse a recipe that trains."""
    train.run(_parse)


def _parse(arguments: list[str]) -> list[str]:
    parsed = recipe_runner.parse_flags(arguments)
    try:
        settings = recipes.read(flags.FLAGS.config, parsed[1:])
    except ConfigError as error:
        sys.exit(f"regionclip_jax: {error}")
    if not isinstance(settings, EvaluateSettings):
        sys.exit(
            f"regionclip_jax: --config: the job of {flags.FLAGS.config} is {settings.job!r}, "
            "expected 'evaluate'; run it with regionclip train"
        )
    return parsed
