#!/usr/bin/env bash
# Has schemathesis ask the gateway whatever its OpenAPI document allows, and what it does not: no answer may be a 5xx.
# run.sh [further options of `schemathesis run`]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${CARGO_TARGET_DIR:-$here/../../target}/tools/api-python
mkdir -p "$(dirname "$python")"
"$here/../venv.sh" "$here/requirements.txt" "$python"
python=$(cd "$python" && pwd)
# Names of models are made up: those that exist are answered, too.
ask() {
  schemathesis run "http://$GATEWAY/openapi.json" --checks not_a_server_error --no-color \
    --exclude-path-regex '/(events|tokens)$' "$@"
}
export -f ask
registry='[[models]]
name = "echo"
task = "echo"'
PATH="$python/bin:$PATH" GATEWAY_LOG=error "$here/../gateway.sh" "$registry" \
  bash -c 'ask "$@"' ask --max-examples "${EXAMPLES:-30}" "$@"
