#!/usr/bin/env bash
# Opens the dashboard in headless Chromium, looks at what it shows and uses it by keyboard: run.sh [FOLDER for screenshots].
# Chromium is Debian's package; it is installed where there is none, which takes root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${CARGO_TARGET_DIR:-$here/../../target}/release
shots=${1:-$bin/../dashboard}
python=$bin/../tools/dashboard-python
command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }
mkdir -p "$(dirname "$python")"
"$here/../venv.sh" "$here/requirements.txt" "$python"
mkdir -p "$shots"
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
PATH="$bin:$PATH" "$bin/inferq" up --registry "$here/models.toml" --data "$data" --port 0 -- \
  "$python/bin/python" "$here/check.py" "$shots"
