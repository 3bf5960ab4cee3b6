"""Compile a recipe for absent GPUs: `regionclip compile`, by default for h100:8."""

import sys

from regionclip_jax.commands.compile import main

if __name__ == "__main__":
    sys.exit(main(default_topology="h100:8"))
