#!/usr/bin/env bash
# Runs a command with a gateway in front of a server of its own: gateway.sh REGISTRY COMMAND [ARGUMENTS]
# The command runs in an empty folder and finds GATEWAY (its host and port), GATEWAY_PID, and the programs in its PATH. Workers
# are those of MODEL, or of all models.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${CARGO_TARGET_DIR:-$here/../target}/release
bin=$(cd "$bin" && pwd)
registry=$1
shift
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
printf '%s\n' "$registry" >"$data/models.toml"
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print("127.0.0.1:%d" % s.getsockname()[1])'; }
run() {
  inferq gateway --keys off --listen "$GATEWAY" --admin "$ADMIN" --log "${GATEWAY_LOG:-warn}" &
  export GATEWAY_PID=$!
  trap 'kill $GATEWAY_PID; wait $GATEWAY_PID || true' EXIT
  until inferq gateway health --admin "$ADMIN" 2>/dev/null; do kill -0 $GATEWAY_PID || exit 1; sleep 0.2; done
  "$@"
}
export -f run
GATEWAY=$(free) ADMIN=$(free)
export GATEWAY ADMIN PATH="$bin:$PATH"
cd "$data"
inferq up --registry models.toml ${MODEL:+--model "$MODEL"} --data nats --port 0 -- bash -c 'run "$@"' run "$@"
