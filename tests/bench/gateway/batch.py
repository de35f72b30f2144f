"""Runs a batch of many lines through a gateway, and says how long it took and how much memory the gateway had at most.
Its argument is the number of lines."""

import json
import os
import sys
import time

import openai

rows = int(sys.argv[1])
process = os.environ["GATEWAY_PID"]
client = openai.OpenAI(base_url=f"http://{os.environ['GATEWAY']}/v1", api_key="none", timeout=600)


def memory(name):
    with open(f"/proc/{process}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


def line(row):
    body = {"model": "echo", "messages": [{"role": "user", "content": f"text {row}"}]}
    return json.dumps({"custom_id": f"r-{row}", "method": "POST", "url": "/v1/chat/completions", "body": body})


with open("in.jsonl", "w") as file:
    file.writelines(f"{line(row)}\n" for row in range(rows))
before, begun = memory("VmRSS"), time.monotonic()
upload = client.files.create(file=open("in.jsonl", "rb"), purpose="batch")
print(f"upload: {upload.bytes / 2**20:.0f} MiB in {time.monotonic() - begun:.1f} s")
begun = time.monotonic()
batch = client.batches.create(input_file_id=upload.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(2)
    batch = client.batches.retrieve(batch.id)
seconds, most = time.monotonic() - begun, memory("VmHWM")
assert batch.status == "completed" and batch.request_counts.completed == rows, batch
print(f"batch: {rows:,} lines in {seconds:.0f} s, {rows / seconds:,.0f} lines/s; {batch.usage.total_tokens:,} tokens")

seen = bytearray(rows)
with client.files.with_streaming_response.content(batch.output_file_id) as content:
    for answer in content.iter_lines():
        answer = json.loads(answer)
        row = int(answer["custom_id"].removeprefix("r-"))
        assert not seen[row], f"line {row} stands twice"
        assert answer["response"]["body"]["choices"][0]["message"]["content"] == f"text {row}", answer
        seen[row] = 1
assert all(seen), "a line is missing"
most = max(most, memory("VmHWM"))
print(f"every line once; memory of the gateway: {before:.0f} MiB before, {most:.0f} MiB at most")
