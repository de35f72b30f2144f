"""Opens streams whose jobs nobody runs, and says what the gateway's process takes: idle.py ADDRESS PROCESS COUNT"""

import asyncio
import json
import pathlib
import re
import sys

ADDRESS, PROCESS, COUNT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
SETTLED = 8


def mebibytes():
    status = pathlib.Path(f"/proc/{PROCESS}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def stream(number):
    reader, writer = await asyncio.open_connection(*ADDRESS.split(":"))
    messages = [{"role": "user", "content": str(number)}]
    body = json.dumps({"model": "nobody", "stream": True, "messages": messages}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    status = await reader.readline()
    assert b" 200 " in status, status
    return reader, writer


async def main():
    before = mebibytes()
    streams = []
    for first in range(0, COUNT, 100):
        streams += await asyncio.gather(*[stream(number) for number in range(first, min(first + 100, COUNT))])
    await asyncio.sleep(SETTLED)
    print(f"resident memory: {before:.0f} MiB, with {len(streams)} idle streams {mebibytes():.0f} MiB")
    for _, writer in streams:
        writer.close()


asyncio.run(main())
