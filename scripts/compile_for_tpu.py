"""Compile a recipe for absent TPUs: `regionclip compile`, by default for v5e:4x4."""

import sys

from regionclip_jax.commands.compile import main

if __name__ == "__main__":
    sys.exit(main(default_topology="v5e:4x4"))
