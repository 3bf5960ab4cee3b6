"""Shared command of `compile_for_tpu.py` and `compile_for_gpu.py`: flags and output."""

import os
import sys

from absl import app, flags

_CONFIG = flags.DEFINE_string(
    "config", None, "Recipe that trains or evaluates; --config.KEY=VALUE sets one of its keys."
)
_LOCALIZER = flags.DEFINE_string(
    "localizer", None, "Name in models.localizer_presets; a detector needs one."
)
_PRESET = flags.DEFINE_string("preset", "RN50", "CLIP of an evaluation (training names its own).")
_NUM_CONCEPTS = flags.DEFINE_integer(
    "num_concepts", 4764, "Concepts of the pool, or classes of a detector."
)
_DUMP = flags.DEFINE_string("dump", None, "File to write the compiled program's text to.")


def run(default_topology: str, meaning: str) -> None:
    """Run the command; ``meaning`` explains its flag ``--topology``."""
    topology = flags.DEFINE_string("topology", default_topology, meaning)

    def main(argv: list[str]) -> None:
        os.environ["JAX_PLATFORMS"] = "cpu"
        from regionclip_jax import recipes
        from regionclip_jax.compile_report.report import compile_recipe
        from regionclip_jax.settings import ConfigError

        try:
            report = compile_recipe(
                recipes.read(_CONFIG.value, argv[1:]),
                topology.value,
                localizer=_LOCALIZER.value,
                preset=_PRESET.value,
                num_concepts=_NUM_CONCEPTS.value,
                dump=_DUMP.value,
            )
        except (ConfigError, ValueError) as error:
            sys.exit(f"error: {error}")
        print(report.text())

    def parse(arguments: list[str]) -> list[str]:
        from regionclip_jax import recipes

        rest, assignments = recipes.split_assignments(arguments)
        rest = flags.FLAGS(rest)
        if len(rest) > 1:
            raise flags.Error(f"unexpected arguments {rest[1:]}")
        return [rest[0], *assignments]

    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
