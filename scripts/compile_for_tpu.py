"""Compiles a recipe's step for TPUs that are not here, and says what it will cost.

    python scripts/compile_for_tpu.py --topology=v5e:16x16 --localizer=rn50_fpn \\
        --config=configs/pretrain.py:rn50x4_cc3m --config.run.batch_size=768

Needs libtpu (`pip install -e ".[tpu]"`) and no TPU. The program is the one that the chips would
run; memory and what travels are its compiler's numbers, times are a roofline: no measurement.
"""

import os
import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe that trains or evaluates.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Kind of chip and grid, e.g. v5e:16x16.")
_LOCALIZER = flags.DEFINE_string(
    "localizer", None, "Name in models.localizer_presets; a detector needs one."
)
_PRESET = flags.DEFINE_string("preset", "RN50", "CLIP of an evaluation (training names its own).")
_NUM_CONCEPTS = flags.DEFINE_integer(
    "num_concepts", 4764, "Concepts of the pool, or classes of a detector."
)
_DUMP = flags.DEFINE_string("dump", None, "File to write the compiled program's text to.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    from regionclip_jax.config import ConfigError
    from regionclip_jax.jobs.compile_ahead import compile_recipe

    try:
        report = compile_recipe(
            _CONFIG.value,
            _TOPOLOGY.value,
            localizer=_LOCALIZER.value,
            preset=_PRESET.value,
            num_concepts=_NUM_CONCEPTS.value,
            dump=_DUMP.value,
        )
    except (ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(report.text())


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
