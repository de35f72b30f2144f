#!/usr/bin/env bash
# Measures the speech engine beside faster-whisper, CTranslate2 and whisper.cpp on the same weights, in one run.
# ROUNDS: 5 unless given. FILES: queued files, 64 unless given.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bin=${CARGO_TARGET_DIR:-target}/release
env=$bin/../bench/speech-env
model=${INFERQ_CACHE:-$HOME/.cache/inferq}
cargo build --locked --release -p workers --example transcribe
if ! cmp -s tests/bench/speech/requirements.txt "$env/requirements.txt"; then
    rm -rf "$env"
    python3 -m venv "$env"
    "$env/bin/pip" install --quiet --require-hashes -r tests/bench/speech/requirements.txt
    cp tests/bench/speech/requirements.txt "$env/"
fi
"$bin/inferq-worker" fetch --registry workers/models.toml --model whisper-tiny.en >"$env/model"
exec "$env/bin/python" tests/bench/speech/bench.py "$bin" "$(tail -1 "$env/model")"
