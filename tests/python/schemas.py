"""Checks with an independent validator that messages of a running deployment are what the JSON Schema files say."""

import asyncio
import json
import os
import pathlib
import sys
import uuid

import nats
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = pathlib.Path(sys.argv[1])


def resources():
    for path in FOLDER.glob("*.json"):
        document = json.loads(path.read_text())
        if "$id" in document:
            yield document["$id"], Resource.from_contents(document)


REGISTRY = Registry().with_resources(resources())


def check(name, value):
    Draft202012Validator(json.loads((FOLDER / name).read_text()), registry=REGISTRY).validate(value)


async def main():
    client = await nats.connect(os.environ["NATS_URL"])
    jetstream = client.jetstream()
    bodies = {
        "/v1/embeddings": {"model": "echo", "input": "a"},
        "/v1/rerank": {"model": "echo", "query": "q", "documents": ["a", {"text": "b"}], "return_documents": True},
        "/v1/classify": {"model": "echo", "input": ["a", "b"]},
        "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "a"}], "stop": None},
        "/v1/completions": {"model": "echo", "prompt": ["a", "b"], "stop": ["x"]},
    }
    names = {url: url.split("/")[2] for url in bodies}
    for url, body in [*bodies.items(), ("/v1/nope", {})]:
        job_id = uuid.uuid4().hex
        job = {"custom_id": "a", "method": "POST", "url": url, "body": body}
        if url in names:
            check("job.json", job)
        live = await client.subscribe(f"inferq.live.default.{job_id}")
        await jetstream.publish(f"inferq.jobs.echo.default.default.{job_id}", json.dumps(job).encode())
        result = json.loads((await live.next_msg(timeout=30)).data)
        check("result.json", result)
        if url in names:
            check(f"{names[url]}.request.json", body)
            check(f"{names[url]}.response.json", result["response"]["body"])
        else:
            check("error.json", result["response"]["body"])
        logs = await jetstream.subscribe(f"inferq.logs.default.{job_id}", ordered_consumer=True)
        check("log.json", json.loads((await logs.next_msg(timeout=30)).data))
    await client.close()
    print("ok")


asyncio.run(main())
