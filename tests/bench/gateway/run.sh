#!/usr/bin/env bash
# What the gateway and the queue add to an engine that takes no time, at 100 requests a second and at the most it can; and
# what a thousand idle streams take. `hey` is Debian's package; it is installed where there is none, which takes root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command -v hey >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends hey; }
# No worker is started for the second one: its streams stay idle.
registry='[[models]]
name = "echo"
task = "echo"
[[models]]
name = "nobody"
task = "echo"'
load() {
  local body='{"model":"echo","messages":[{"role":"user","content":"hello there"}]}'
  ask() { hey -m POST -T application/json -d "$body" "$@" "http://$GATEWAY/v1/chat/completions" | grep -E 'Requests/sec|  (50|99)% in|responses'; }
  for round in 1 2 3; do
    echo "100 requests/s, 4 connections, round $round"
    ask -z 20s -c 4 -q 25
  done
  echo "as many as it can, 64 connections"
  ask -z 10s -c 64
  python3 "$1" "$GATEWAY" "$GATEWAY_PID" 1000
}
export -f load
MODEL=echo "$here/../../gateway.sh" "$registry" bash -c 'load "$@"' load "$here/idle.py"
