#!/usr/bin/env bash
# A batch of ROWS lines through a gateway and a worker of the echo model: how long it takes, whether every line has its
# answer once, and how much memory the gateway takes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${CARGO_TARGET_DIR:-$here/../../../target}/release
python=$bin/test-python
requirements=$here/../../python/requirements.txt
if ! cmp -s "$requirements" "$python/requirements.txt"; then
  python3 -m venv --clear "$python"
  "$python/bin/pip" install --quiet --require-hashes -r "$requirements"
  cp "$requirements" "$python/"
fi
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
cat > "$data/models.toml" <<'TOML'
[[models]]
name = "echo"
task = "echo"
limits = { in_flight = 256, batch = 256 }
TOML
drive() {
  local python=$1 script=$2 address=$3 admin=$4 rows=$5
  inferq gateway --keys off --listen "$address" --admin "$admin" --log warn &
  gateway=$!
  trap 'kill $gateway; wait $gateway || true' EXIT
  until inferq gateway health --admin "$admin" 2>/dev/null; do kill -0 $gateway || exit 1; sleep 0.2; done
  "$python" "$script" "http://$address" $gateway "$rows"
}
export -f drive
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print("127.0.0.1:%d" % s.getsockname()[1])'; }
cd "$data"
PATH="$bin:$PATH" "$bin/inferq" up --registry "$data/models.toml" --model echo --data "$data/nats" --port 0 -- \
  bash -c 'drive "$@"' drive "$python/bin/python" "$here/batch.py" "$(free)" "$(free)" "${ROWS:-1000000}"
