#!/usr/bin/env bash
# Run the synthetic experiment from scratch: environment, then the main job on synthetic scenes.
# Usage: scripts/quickstart.sh [WORKDIR] [flags of the main job]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment ""
workdir="${1:-workdir/scenes}"
[ $# -gt 0 ] && shift
# Status 75 also ends this script: no detection after a stopped run.
.venv/bin/python -m regionclip_jax.main --preempted_status=75 \
  --config=configs/pretrain.py --workdir="$workdir" "$@"
echo "detection: the same two models, with sliding windows instead of given boxes"
exec .venv/bin/python -m regionclip_jax.main \
  --config=configs/evaluate.py:scenes --workdir="$workdir/detection" \
  --config.evaluation.path="$workdir/data/held_out" \
  --config.models.teacher="$workdir/teacher/model" \
  --config.models.student="$workdir/student/model"
