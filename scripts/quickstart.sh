#!/usr/bin/env bash
# The embedded experiment from nothing: environment, then the main job on drawn scenes.
# Usage: scripts/quickstart.sh [WORKDIR] [flags of the main job]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment ""
workdir="${1:-workdir/scenes}"
[ $# -gt 0 ] && shift
exec .venv/bin/python -m regionclip_jax.main \
  --config=configs/pretrain.py --workdir="$workdir" "$@"
