#!/usr/bin/env bash
# Makes a Python environment with the packages of a requirements file, unless it is there: venv.sh REQUIREMENTS FOLDER
set -euo pipefail
if ! cmp -s "$1" "$2/requirements.txt"; then
  python3 -m venv --clear "$2"
  "$2/bin/pip" install --quiet --require-hashes -r "$1"
  cp "$1" "$2/"
fi
