#!/usr/bin/env bash
# Run the synthetic experiment from scratch: environment, then the main job on synthetic scenes.
# Usage: scripts/quickstart.sh [WORKDIR] [flags of the main job]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment ""
workdir="${1:-workdir/scenes}"
[ $# -gt 0 ] && shift
exec .venv/bin/python -m regionclip_jax.main \
  --config=configs/pretrain.py --workdir="$workdir" "$@"
