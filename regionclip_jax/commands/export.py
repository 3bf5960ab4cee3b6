"""Write a model for other programs: its weights, or a program that detects objects.

    regionclip export models/vit_b16 --format safetensors --output models/vit_b16_hf
    regionclip export models/rn50 --format openclip --output models/rn50_open_clip
    regionclip export models/rn50 --format regionclip_pth --output rn50.pth

openclip and safetensors (transformers) are directories with weights and configuration;
regionclip_pth is a file for the PyTorch reference, with heads and localizer. No PyTorch is needed.
docs/export.md says which format has which model.
"""

import argparse

from regionclip_jax.export.weights import WEIGHT_FORMATS, export_weights
from regionclip_jax.failures import one_line
from regionclip_jax.hub import local_directory
from regionclip_jax.reporting.progress import log_own_progress


@one_line(ValueError)
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="model directory, or hf://owner/name")
    parser.add_argument("--format", choices=tuple(WEIGHT_FORMATS), required=True)
    parser.add_argument("--output", metavar="PATH", required=True, help="directory or file")
    options = parser.parse_args(arguments)
    log_own_progress()
    exported = export_weights(local_directory(options.model), options.format, options.output)
    print(exported.summary())
    print(f"written: {options.output}")
    return 0
