"""Publishes jobs with nats-py alone and checks what comes back on the reply subjects."""

import asyncio
import json
import os
import uuid

import msgpack
import nats

CODECS = {
    "application/json": (lambda value: json.dumps(value).encode(), json.loads),
    "application/msgpack": (msgpack.packb, msgpack.unpackb),
}


async def answer(client, jetstream, content_type, job):
    encode, decode = CODECS[content_type]
    job_id = uuid.uuid4().hex
    live = await client.subscribe(f"inferq.live.default.{job_id}")
    headers = {"Content-Type": content_type, "Nats-Msg-Id": f"default/{job_id}"}
    await jetstream.publish(f"inferq.jobs.echo.default.default.{job_id}", encode(job), headers=headers)
    message = await live.next_msg(timeout=30)
    assert message.headers["Content-Type"] == content_type, message.headers
    result = decode(message.data)
    stored = await jetstream.get_last_msg("INFERQ_RESULTS", f"inferq.results.default.{job_id}")
    assert stored.data == message.data
    assert result["id"] == job_id and result["custom_id"] == job["custom_id"] and result["error"] is None, result
    return job_id, result["response"]


async def log_events(jetstream, job_id):
    subscription = await jetstream.subscribe(f"inferq.logs.default.{job_id}", ordered_consumer=True)
    message = await subscription.next_msg(timeout=30)
    return [record["event"] for record in json.loads(message.data)]


async def main():
    client = await nats.connect(os.environ["NATS_URL"])
    jetstream = client.jetstream()
    for content_type in CODECS:
        chat = {"model": "echo", "messages": [{"role": "user", "content": "grüße 👋"}]}
        job = {"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions", "body": chat}
        job_id, response = await answer(client, jetstream, content_type, job)
        assert response["status_code"] == 200, response
        assert response["body"]["choices"][0]["message"]["content"] == "grüße 👋", response
        assert await log_events(jetstream, job_id) == ["queued", "started", "finished"]

        embed = {"model": "echo", "input": ["a", "b"], "dimensions": 8}
        job = {"custom_id": "e1", "method": "POST", "url": "/v1/embeddings", "body": embed}
        _, response = await answer(client, jetstream, content_type, job)
        assert len(response["body"]["data"]) == 2, response

        job = {"custom_id": "bad", "method": "POST", "url": "/v1/embeddings", "body": {"model": "echo", "input": 7}}
        _, response = await answer(client, jetstream, content_type, job)
        assert response["status_code"] == 400 and response["body"]["error"]["param"] == "body.input", response
    try:
        await jetstream.publish("inferq.jobs.unknown.default.default.x", b"{}")
        raise AssertionError("a job for an unknown model was taken")
    except nats.js.errors.NoStreamResponseError:
        pass
    await client.close()
    print("ok")


asyncio.run(main())
