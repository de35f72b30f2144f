#!/usr/bin/env bash
# What the gateway and the queue add to an engine that takes no time, at 100 requests a second and at the most it can; and
# what a thousand idle streams take. `hey` is Debian's package; it is installed where there is none, which takes root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${CARGO_TARGET_DIR:-$here/../../../target}/release
command -v hey >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends hey; }
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
cat > "$data/models.toml" <<'TOML'
[[models]]
name = "echo"
task = "echo"
# No worker is started for it: its streams stay idle.
[[models]]
name = "nobody"
task = "echo"
TOML
load() {
  local url=http://$1 admin=$2 idle=$3 body='{"model":"echo","messages":[{"role":"user","content":"hello there"}]}'
  inferq gateway --keys off --listen "$1" --admin "$admin" --log warn &
  gateway=$!
  trap 'kill $gateway; wait $gateway || true' EXIT
  until inferq gateway health --admin "$admin" 2>/dev/null; do kill -0 $gateway || exit 1; sleep 0.2; done
  ask() { hey -m POST -T application/json -d "$body" "$@" "$url/v1/chat/completions" | grep -E 'Requests/sec|  (50|99)% in|responses'; }
  for round in 1 2 3; do
    echo "100 requests/s, 4 connections, round $round"
    ask -z 20s -c 4 -q 25
  done
  echo "as many as it can, 64 connections"
  ask -z 10s -c 64
  python3 "$idle" "$1" $gateway 1000
}
export -f load
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print("127.0.0.1:%d" % s.getsockname()[1])'; }
PATH="$bin:$PATH" "$bin/inferq" up --registry "$data/models.toml" --model echo --data "$data/nats" --port 0 -- \
  bash -c 'load "$@"' load "$(free)" "$(free)" "$here/idle.py"
