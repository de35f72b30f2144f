#!/usr/bin/env bash
# A batch of ROWS lines through a gateway and a worker of the echo model: how long it takes, whether every line has its
# answer once, and how much memory the gateway takes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tests=$here/../..
python=${CARGO_TARGET_DIR:-$tests/../target}/release/test-python
"$tests/venv.sh" "$tests/python/requirements.txt" "$python"
registry='[[models]]
name = "echo"
task = "echo"
limits = { in_flight = 256, batch = 256 }'
python=$(cd "$python" && pwd)/bin/python
"$tests/gateway.sh" "$registry" "$python" "$here/batch.py" "${ROWS:-1000000}"
