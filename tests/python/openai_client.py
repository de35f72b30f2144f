"""What OpenAI's own Python client, unmodified, sees of the gateway. Its argument is the gateway's URL; the model is `echo`."""

import json
import sys
import threading
import time

import openai

URL = sys.argv[1]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def models():
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").owned_by == "inferq"


def chat():
    answer = client.chat.completions.create(model="echo", messages=user("hello"), temperature=0, seed=7)
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id.startswith("req_")
    short = client.chat.completions.create(model="echo", messages=user("hello"), max_completion_tokens=3)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("hel", "length")
    stopped = client.chat.completions.create(model="echo", messages=user("one, two"), stop=[","])
    assert stopped.choices[0].message.content == "one"
    several = client.chat.completions.create(model="echo", messages=user("hello"), n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    parts = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": [{"type": "text", "text": "in parts"}]}]
    )
    assert parts.choices[0].message.content == "in parts"


def streamed():
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="echo", messages=user("a few words"), stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "a few words"
    assert len({chunk.id for chunk in chunks}) == 1 and len({chunk.created for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len("a few words")
    assert chunks[-2].choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(model="echo", messages=user("x"), stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop" and all(chunk.usage is None for chunk in chunks)
    texts = client.completions.create(model="echo", prompt="tell me", stream=True)
    assert "".join(chunk.choices[0].text for chunk in texts) == "tell me"


def helper():
    # The client's own collector of chunks, which is strict about their order.
    with client.chat.completions.stream(model="echo", messages=user("together")) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "together"


def completions():
    answer = client.completions.create(model="echo", prompt="hi", max_tokens=16)
    assert answer.choices[0].text == "hi"
    answer = client.completions.create(model="echo", prompt=["a", "b"], n=2, max_tokens=4)
    assert [choice.text for choice in answer.choices] == ["a", "a", "b", "b"]
    tokens = client.completions.create(model="echo", prompt=[104, 105], max_tokens=4)
    assert tokens.choices[0].text == "hi"


def embeddings():
    texts = ["one", "two", "three"]
    plain = client.embeddings.create(model="echo", input=texts)
    floats = client.embeddings.create(model="echo", input=texts, encoding_format="float")
    assert [item.index for item in plain.data] == [0, 1, 2]
    for one, other in zip(plain.data, floats.data):
        assert len(one.embedding) == len(other.embedding)
        assert all(abs(a - b) < 1e-6 for a, b in zip(one.embedding, other.embedding))
    assert client.embeddings.create(model="echo", input=[[1, 2], [3]]).usage.prompt_tokens == 3
    assert len(client.embeddings.create(model="echo", input=[1, 2]).data) == 1


def errors():
    chat = client.chat.completions
    error = raises(openai.NotFoundError, lambda: chat.create(model="nobody", messages=user("x")))
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    error = raises(openai.BadRequestError, lambda: chat.create(model="echo", messages=user("x"), temperature=9))
    assert error.param == "temperature" and error.request_id.startswith("req_")
    raises(openai.BadRequestError, lambda: chat.create(model="echo", messages=[]))
    raises(openai.BadRequestError, lambda: client.embeddings.create(model="echo", input=[]))
    raises(openai.BadRequestError, lambda: client.embeddings.create(model="echo", input="x", dimensions=-1))
    raises(openai.BadRequestError, lambda: chat.create(model="echo", messages=user("x"), max_tokens=-1, stream=True))
    raises(openai.NotFoundError, lambda: client.models.retrieve("nobody"))


def tiers():
    for tier in ["auto", "default", "flex", "priority"]:
        client.chat.completions.create(model="echo", messages=user("x"), service_tier=tier)
    raises(openai.BadRequestError, lambda: client.chat.completions.create(model="echo", messages=user("x"), service_tier="fast"))


def timeouts():
    slow = "x" * 4000
    impatient = client.with_options(timeout=0.5)
    raises(openai.APITimeoutError, lambda: impatient.chat.completions.create(model="echo", messages=user(slow)))
    # An answer that is left in the middle.
    with client.chat.completions.create(model="echo", messages=user(slow), stream=True) as stream:
        next(iter(stream))
    assert client.chat.completions.create(model="echo", messages=user("still there")).choices[0].message.content == "still there"


def many():
    answers = {}

    def ask(number):
        answer = client.chat.completions.create(model="echo", messages=user(f"number {number}"))
        answers[number] = answer.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert answers == {number: f"number {number}" for number in range(32)}


def row(name, text="hello", **body):
    body = {"model": "echo", "messages": user(text), **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(rows, name="rows.jsonl"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return client.files.create(file=(name, text.encode()), purpose="batch")


def finished(batch, patience=60):
    deadline = time.monotonic() + patience
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines(file_id):
    return {line["custom_id"]: line for line in map(json.loads, client.files.content(file_id).text.splitlines())}


def files():
    text = "Grüße, 世界\n" * 100_000
    expires = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("some.jsonl", text.encode()), purpose="user_data", expires_after=expires)
    assert (file.filename, file.purpose, file.bytes) == ("some.jsonl", "user_data", len(text.encode()))
    assert (file.object, file.status, file.expires_at) == ("file", "processed", file.created_at + 3600)
    assert client.files.content(file.id).text == text
    assert client.files.retrieve(file.id).id == file.id
    more = [client.files.create(file=b"{}", purpose="evals") for _ in range(4)]
    assert [item.id for item in client.files.list(limit=2, purpose="evals")] == [item.id for item in reversed(more)]
    assert [item.id for item in client.files.list(limit=3, order="asc")] == [file.id] + [item.id for item in more]
    for item in [file, *more]:
        assert client.files.delete(item.id).deleted
    raises(openai.NotFoundError, lambda: client.files.retrieve(file.id))
    raises(openai.NotFoundError, lambda: client.files.content(file.id))
    raises(openai.BadRequestError, lambda: client.files.create(file=b"x", purpose="nothing"))
    raises(openai.BadRequestError, lambda: client.files.list(limit=0).data)


def batches():
    rows = [row(f"r-{number}", f"text {number}") for number in range(50)]
    embed = {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"model": "echo", "input": ["a", "b"]}}
    file = upload([*rows, embed, row("bad", temperature=9)])
    create = lambda: client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"kind": "test"}
    )
    batch = create()
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"kind": "test"})
    # Clients repeat what they had no answer to.
    assert create().id == batch.id
    batch = finished(batch)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 52, 51, 1), batch
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at <= batch.expires_at
    answers, errors = lines(batch.output_file_id), lines(batch.error_file_id)
    assert set(answers) == {f"r-{number}" for number in range(50)} | {"e"} and set(errors) == {"bad"}
    for number in range(50):
        body = answers[f"r-{number}"]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == f"text {number}"
    assert len(answers["e"]["response"]["body"]["data"]) == 2
    assert errors["bad"]["response"]["status_code"] == 400 and errors["bad"]["error"] is None
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output" and output.bytes == len(client.files.content(output.id).content)
    again = finished(client.post(f"/batches/{batch.id}/retry", cast_to=openai.types.Batch))
    assert (again.request_counts.total, again.request_counts.failed) == (1, 1)
    assert set(lines(again.error_file_id)) == {"bad"}
    raises(openai.ConflictError, lambda: client.batches.cancel(batch.id))


def pages():
    file = upload([row("one")])
    made = [
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"n": str(number)}
        )
        for number in range(5)
    ]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert listed[:5] == [batch.id for batch in reversed(made)] and len(set(listed)) == len(listed)
    assert all(finished(batch).status == "completed" for batch in made)


def wrong_batches():
    create = lambda file_id, **more: client.batches.create(
        **{"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **more}
    )
    rows = [row("a"), row("a"), {**row("c"), "url": "/v1/nothing"}, row("d", model="nobody"), row("e", stream=True)]
    batch = finished(create(upload(rows).id))
    assert batch.status == "failed" and batch.failed_at
    found = {(error.line, error.param) for error in batch.errors.data}
    assert {(3, "url"), (4, "body.model"), (5, "body.stream")} <= found, batch.errors
    empty = finished(create(upload([]).id))
    assert (empty.status, empty.errors.data[0].code) == ("failed", "empty_file")
    raises(openai.BadRequestError, lambda: create("file-nothing"))
    raises(openai.BadRequestError, lambda: create(upload([row("a")]).id, completion_window="later"))
    raises(openai.BadRequestError, lambda: create(upload([row("a")]).id, metadata={"k": "x" * 600}))
    raises(openai.NotFoundError, lambda: client.batches.retrieve("batch_nothing"))
    other = client.files.create(file=b"{}", purpose="user_data")
    raises(openai.BadRequestError, lambda: create(other.id))


for check in [models, chat, streamed, helper, completions, embeddings, errors, tiers, timeouts, many, files, batches, pages, wrong_batches]:
    try:
        check()
    except Exception as error:
        raise SystemExit(f"{check.__name__}: {type(error).__name__}: {error}") from error
print("ok")
