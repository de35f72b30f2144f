"""Prints some answers of the demo's output file."""

import json
import sys

for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    body = row["response"]["body"]
    if row["custom_id"] in ("embed-1", "embed-2"):
        vector = body["data"][0]["embedding"]
        print(f"  {row['custom_id']}: {len(vector)} dimensions, {[round(value, 4) for value in vector[:4]]} ...")
    if row["custom_id"] in ("chat-1", "chat-4", "chat-8"):
        print(f"  {row['custom_id']}: {body['choices'][0]['message']['content']!r}")
