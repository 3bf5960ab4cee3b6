#!/usr/bin/env bash
# Tests. Usage: scripts/test.sh [--all] [arguments of pytest]
#   without --all: everything but what is marked slow, gpu or tpu; with it: everything this machine
#   can run (gpu and tpu tests need such a device).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment test
marks="not slow and not gpu and not tpu"
# The quick tests spend most of their time compiling programs of a few steps; --all compiles them as
# a user's run does.
flags="--xla_backend_optimization_level=0 ${XLA_FLAGS:-}"
if [ "${1:-}" = "--all" ]; then
  shift
  flags="${XLA_FLAGS:-}"
  marks="$(.venv/bin/python - <<'PY'
import jax
platform = jax.devices()[0].platform
print(" and ".join(f"not {name}" for name in ("gpu", "tpu") if name != platform) or "True")
PY
)"
fi
XLA_FLAGS="$flags" exec .venv/bin/python -m pytest -q -n "${TEST_PROCESSES:-2}" -m "$marks" "$@"
