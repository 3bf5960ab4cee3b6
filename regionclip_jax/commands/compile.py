"""Compile the step of a recipe for TPUs or GPUs that are absent, and report its cost.

    regionclip compile --topology=v5e:16x16 --localizer=rn50_fpn \\
        --config=configs/pretrain.py:rn50x4_cc3m --config.run.batch_size=768
    regionclip compile --topology=h200:8 --localizer=rn50_fpn \\
        --config=configs/pretrain.py:rn50_coco

TPUs need libtpu (pip install -e ".[tpu]"), GPUs JAX's CUDA plugin (".[gpu]"); neither needs a chip
or a driver. For TPUs the program is the one that the chips would run. For GPUs it is nearly that:
kernels that XLA chooses by trying them out (tiles of matrix products, algorithms of convolutions
and their memory) stay at their defaults. Memory and traffic are the compiler's numbers; times are a
roofline, not a measurement.
"""

import argparse
import os
import sys

from regionclip_jax import recipes
from regionclip_jax.failures import one_line


@one_line(ValueError)
def main(arguments: list[str] | None = None, default_topology: str | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, metavar="RECIPE",
        help="a recipe that trains or evaluates; --config.KEY=VALUE sets one of its keys",
    )  # fmt: skip
    parser.add_argument(
        "--topology", default=default_topology, required=default_topology is None, metavar="CHIPS",
        help="chip and number of chips, e.g. v5e:16x16, h200:8 (one host), h100:4x8 (four)",
    )  # fmt: skip
    parser.add_argument("--localizer", help="a name in models.presets; a detector needs one")
    parser.add_argument(
        "--preset", default="RN50", help="CLIP of an evaluation; a training names its own (RN50)"
    )
    parser.add_argument(
        "--num_concepts", type=int, default=4764,
        help="concepts of the pool, or classes of a detector (4764)",
    )  # fmt: skip
    parser.add_argument("--dump", metavar="FILE", help="write the compiled program's text here")
    rest, assignments = recipes.split_assignments(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(rest)
    # Before JAX starts: the machine's own devices have no part in this.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from regionclip_jax.compile_report.report import compile_recipe

    report = compile_recipe(
        recipes.read(options.config, assignments),
        options.topology,
        localizer=options.localizer,
        preset=options.preset,
        num_concepts=options.num_concepts,
        dump=options.dump,
    )
    print(report.text())
    return 0
