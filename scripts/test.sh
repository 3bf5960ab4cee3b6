#!/usr/bin/env bash
# Run the tests. Usage: scripts/test.sh [--all] [arguments of pytest]
#   Without --all: all tests not marked slow, on the CPU. With --all: all tests on the CPU, then, on
#   a machine with a GPU or a TPU, the tests marked gpu or tpu again on that device.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment test
processes="${TEST_PROCESSES:-2}"

# Quick tests mostly compile, and run few steps. A free process takes tests from the other one, as
# the last files are among the longest. --all compiles like a user's run.
quick() {
  JAX_PLATFORMS=cpu .venv/bin/python -m pytest -q -n "$processes" --dist worksteal \
    -m "not slow" "$@"
}

if [ "${1:-}" != "--all" ]; then
  echo "quick tests run on the CPU"
  export XLA_FLAGS="--xla_backend_optimization_level=0 ${XLA_FLAGS:-}"
  if [ $# -gt 0 ]; then
    quick "$@"
    exit
  fi
  status=0
  quick tests/ops || status=$?
  # Without its emitters of fusions XLA compiles a step in two thirds of the time, and turns
  # divisions by a constant into products again, which RoIAlign avoids; so tests/ops run above. (XLA
  # ends with an error for an option that its version lacks, and jaxlib 0.12 lacks this one.)
  XLA_FLAGS="--xla_cpu_use_fusion_emitters=false $XLA_FLAGS" quick --ignore=tests/ops || status=$?
  exit "$status"
fi
shift

platform="$(.venv/bin/python -c 'import jax; print(jax.devices()[0].platform)')"
case "$platform" in
  gpu | tpu) echo "all tests run on the CPU, then those marked $platform on the $platform" ;;
  *) echo "no accelerator: tests run on the CPU only" ;;
esac
status=0
JAX_PLATFORMS=cpu .venv/bin/python -m pytest -q -n "$processes" "$@" || status=$?
case "$platform" in
  gpu | tpu)
    # One process: several would share the device's memory. Status 5: no selected test is marked.
    XLA_PYTHON_CLIENT_PREALLOCATE=false .venv/bin/python -m pytest -q -n 0 -m "$platform" "$@" || {
      accelerator_status=$?
      [ "$accelerator_status" = 5 ] || status="$accelerator_status"
    }
    ;;
esac
exit "$status"
