# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: create an environment in .venv with the tested versions, and
# set memory allocation.

# Every step on a CPU allocates its memory again. Huge pages save a tenth of a small CLIP's step
# (glibc from 2.35; other versions ignore the setting).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

# Usage: make_environment EXTRA, where locks/EXTRA.txt exists (core for none), e.g.
# make_environment test; run from the repository's root.
make_environment() {
  local python="${PYTHON:-python3}" stamp=".venv/.installed-$1"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "regionclip_jax needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2
    return 1
  }
  if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv
  fi
  # Install once for each state of the files that define the packages.
  local state lock
  state="$(cat setup.py setup.cfg "locks/${1:-core}.txt" | cksum)"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$state" ]; then
    # Locks carry hashes, so pip refuses any file that they do not list. Without isolation, the
    # locked setuptools builds what has no wheel, and this package, which cannot have a hash.
    for lock in "-r locks/build.txt" "-r locks/${1:-core}.txt" "--no-deps -e ."; do
      # shellcheck disable=SC2086
      .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation $lock
    done
    echo "$state" >"$stamp"
  fi
}
