"""Programs as StableHLO, serialized by ``jax.export``: one file for CPUs, CUDA GPUs and TPUs.

Any jax of six months before or after reads the file (jax's own promise); this package is not
needed.
"""

import json
from pathlib import Path

import jax
import jax.export

from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.export.programs import Program, describe_detection
from regionclip_jax.extras import require_extra
from regionclip_jax.files import replace_text, replaced_file
from regionclip_jax.model import RegionCLIP
from regionclip_jax.ops.backend import tracing_for

ENDING = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(model: RegionCLIP, program: Program, output: Path) -> tuple[Path, Path]:
    """Write a program, and its description in JSON beside it; return both paths.

    Raises:
        MissingExtra: flatbuffers is not installed.
        CheckpointMismatch: the name of the file has another ending.
    """
    if output.suffix != ENDING:
        raise CheckpointMismatch(f"--output: expected a name that ends in {ENDING}, found {output}")
    require_extra("stablehlo", "--format stablehlo")
    # One way of computation serves all platforms, whichever this machine has.
    with tracing_for("cpu"):
        exported = jax.export.export(jax.jit(program.call), platforms=PLATFORMS)(
            *program.inputs.values()
        )
    with replaced_file(output) as file:
        file.write(exported.serialize())
    about = describe_detection(model, program) | {
        "platforms": list(PLATFORMS),
        "calling_convention_version": exported.calling_convention_version,
    }
    beside = output.with_suffix(".json")
    replace_text(beside, json.dumps(about, indent=1) + "\n")
    return output, beside
