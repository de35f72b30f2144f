#!/usr/bin/env bash
# The demo's job, inside `inferq up`: a batch file on real models, some answers, the log of one job, the measured rate.
set -eu
here=$(dirname "$0")
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

echo
echo "== inferq batch run $here/batch.jsonl"
summary=$(inferq batch run "$here/batch.jsonl" -o "$out/out.jsonl")

echo
echo "== some answers"
python3 "$here/show.py" "$out/out.jsonl"

echo
echo "== inferq batch run on a folder of audio files: what is said in them"
inferq batch run "$here/../speech/clips" -o "$out/speech" --model whisper-tiny.en
grep -H . "$out/speech"/*.txt | sed "s#^$out/speech/#  #"

echo
echo "== inferq logs: what happened to one job"
job=$(grep -m1 '"custom_id":"chat-1"' "$out/out.jsonl" | sed 's/^{"id":"\([^"]*\)".*/\1/')
inferq logs "$job"

echo
echo "== inferq status"
inferq status

echo
echo "$summary" | head -1
