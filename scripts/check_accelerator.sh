#!/usr/bin/env bash
# Prove and measure the package on the accelerator of this machine (or on its CPU).
#
# Usage: scripts/check_accelerator.sh [--budget SECONDS] [--output DIR] [--parts a,b,...] [--small]
#   --help lists the parts. Nothing is installed: PYTHON (default python3) needs jax with its
#   accelerator, flax, optax, numpy and jaxtyping; parts that need more are skipped and listed.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
# No cd: paths of the user are relative to the current folder.
export PYTHONPATH="$root:$root/scripts:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m accelerator.check "$@"
