#!/usr/bin/env bash
# Compare detectors with three initial weights over three seeds, each with its own scenes and teacher.
# Usage: scripts/detection_seeds.sh [WORKDIR]   (about 30 minutes on 2 idle CPU cores; continues where it stopped)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment ""
workdir="${1:-workdir/scenes_detection}"
for seed in 0 1 2; do
  # Status 75 also ends this script: no seed starts after a stopped one.
  .venv/bin/python -m regionclip_jax.main --preempted_status=75 \
    --config=configs/pretrain.py:scenes_detection --workdir="$workdir/seed$seed" \
    --config.seed="$seed" --config.scenes.seed="$seed"
done
exec .venv/bin/python scripts/summarize_results.py "$workdir"/seed{0,1,2} \
  --compare CLIP RegionCLIP --write "$workdir/results.json"
