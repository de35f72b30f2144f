#!/usr/bin/env bash
# Measures the speech engine beside faster-whisper, CTranslate2 and whisper.cpp on the same weights, in one run.
# ROUNDS: 5 unless given. FILES: queued files, 64 unless given. KINDS: types of numbers, "f32 int8" unless given.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bin=${CARGO_TARGET_DIR:-target}/release
env=$bin/../bench/speech-env
model=${INFERQ_CACHE:-$HOME/.cache/inferq}
cargo build --locked --release -p workers --example transcribe
mkdir -p "$(dirname "$env")"
tests/venv.sh tests/bench/speech/requirements.txt "$env"
"$bin/inferq-worker" fetch --registry workers/models.toml --model whisper-tiny.en >"$env/model"
exec "$env/bin/python" tests/bench/speech/bench.py "$bin" "$(tail -1 "$env/model")"
