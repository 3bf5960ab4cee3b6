# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: an environment in .venv with the tested set of versions.
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
  # Installed once for each state of the two files that decide what is installed.
  local state
  state="$(cat setup.cfg constraints.txt | cksum)"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$state" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt -e ".$extras"
    echo "$state" >"$stamp"
  fi
}
