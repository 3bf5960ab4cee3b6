#!/usr/bin/env bash
# Renew locks/: exact versions with the hashes of all their files, one lock for each set of extras.
# Usage: scripts/lock.sh [flags of `uv pip compile`, such as --upgrade]; needs uv (pip install uv).
# Without --upgrade, versions that still fit setup.cfg stay.
set -euo pipefail
cd "$(dirname "$0")/.."

# Usage: lock NAME SOURCE... [FLAGS]
lock() {
  local file="locks/$1.txt"
  shift
  # --universal: one file for all systems and Pythons. Universal files have markers.
  uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
    --no-annotate --custom-compile-command scripts/lock.sh --output-file "$file" "$@" >/dev/null
  echo "$file: $(grep -c == "$file") packages"
}

lock test setup.cfg --extra test "$@"
lock core setup.cfg --constraints locks/test.txt "$@"
for extra in docs types gpu tpu; do
  lock "$extra" setup.cfg --extra "$extra" --constraints locks/test.txt "$@"
done
# Package managers build distributions without wheels, and this package, with it.
python3 -c 'import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' |
  lock build - --constraints locks/test.txt "$@"
