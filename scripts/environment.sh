# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: an environment in .venv with the tested set of versions,
# and how it takes memory.

# Every step on a CPU takes its memory anew; in large pages that is a tenth of a small CLIP's step
# less (glibc from 2.35; others ignore it).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

# Usage: make_environment EXTRAS, e.g. make_environment test; run from the repository's root.
make_environment() {
  local python="${PYTHON:-python3}" extras="${1:+[$1]}" stamp=".venv/.installed-$1"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "regionclip_jax needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2
    return 1
  }
  if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv
  fi
  # Installed once for each state of the files that decide what is installed.
  local state
  state="$(cat setup.py setup.cfg constraints.txt | cksum)"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$state" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt -e ".$extras"
    echo "$state" >"$stamp"
  fi
}
