#!/usr/bin/env bash
# Has schemathesis ask the gateway whatever its OpenAPI document allows, and what it does not: no answer may be a 5xx.
# run.sh [further options of `schemathesis run`]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${CARGO_TARGET_DIR:-$here/../../target}/release
python=$bin/../tools/api-python
if ! cmp -s "$here/requirements.txt" "$python/requirements.txt"; then
  python3 -m venv --clear "$python"
  "$python/bin/pip" install --quiet --require-hashes -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$python/"
fi
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
cat > "$data/models.toml" <<'TOML'
[[models]]
name = "echo"
task = "echo"
TOML
ask() {
  local port=$1 admin=$2
  shift 2
  inferq gateway --keys off --listen "127.0.0.1:$port" --admin "127.0.0.1:$admin" --log error &
  gateway=$!
  trap 'kill $gateway; wait $gateway || true' EXIT
  until inferq gateway health --admin "127.0.0.1:$admin" 2>/dev/null; do kill -0 $gateway || exit 1; sleep 0.2; done
  # Names of models are made up: those that exist are answered, too.
  schemathesis run "http://127.0.0.1:$port/openapi.json" --checks not_a_server_error --no-color \
    --exclude-path-regex '/(events|tokens)$' "$@"
}
export -f ask
free() { "$python/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
cd "$data"
PATH="$python/bin:$bin:$PATH" "$bin/inferq" up --registry "$data/models.toml" --data "$data/nats" --port 0 -- \
  bash -c 'ask "$@"' ask "$(free)" "$(free)" --max-examples "${EXAMPLES:-30}" "$@"
