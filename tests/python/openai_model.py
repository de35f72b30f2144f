"""What OpenAI's own Python client, unmodified, gets from a real model behind the gateway. Its arguments are the gateway's URL
and the names of a model that generates and of one that embeds."""

import json
import math
import sys

import openai

URL, GENERATE, EMBED = sys.argv[1:]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=300)
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def chat():
    create = lambda **more: client.chat.completions.create(
        model=GENERATE, messages=CAPITAL, temperature=0, max_completion_tokens=24, **more
    )
    with create(stream=True) as stream:
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    whole = create().choices[0].message.content
    assert "Paris" in whole and "".join(parts) == whole and len(parts) > 2, (whole, parts)


def logprobs():
    answer = client.chat.completions.create(
        model=GENERATE, messages=CAPITAL, temperature=0, max_completion_tokens=5, logprobs=True, top_logprobs=2
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


def several():
    answer = client.chat.completions.create(
        model=GENERATE, messages=CAPITAL, n=2, seed=7, temperature=1, max_completion_tokens=8
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    again = client.chat.completions.create(
        model=GENERATE, messages=CAPITAL, n=2, seed=7, temperature=1, max_completion_tokens=8
    )
    texts = lambda answer: [choice.message.content for choice in answer.choices]
    assert texts(answer) == texts(again)


def schema():
    wanted = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=GENERATE,
        messages=CAPITAL,
        temperature=0,
        max_completion_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": wanted}},
    )
    read = json.loads(answer.choices[0].message.content)
    assert set(read) == {"city", "people"} and isinstance(read["people"], int), read


def stops():
    answer = client.completions.create(model=GENERATE, prompt="1, 2, 3, 4,", temperature=0, max_tokens=20, stop=["7"])
    assert answer.choices[0].finish_reason == "stop" and "7" not in answer.choices[0].text, answer


def embeddings():
    texts = ["a cat sits on the mat", "a kitten on a rug", "quarterly tax report"]
    vectors = [item.embedding for item in client.embeddings.create(model=EMBED, input=texts).data]
    product = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert all(math.isclose(product(vector, vector), 1, abs_tol=1e-3) for vector in vectors)
    assert product(vectors[0], vectors[1]) > product(vectors[0], vectors[2]) + 0.2


def tools():
    # No engine honours them yet: they are refused, not ignored.
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    try:
        client.chat.completions.create(model=GENERATE, messages=CAPITAL, tools=[tool])
    except openai.BadRequestError as error:
        assert error.param == "tools", error
    else:
        raise AssertionError("tools were ignored")


for check in [chat, logprobs, several, schema, stops, embeddings, tools]:
    try:
        check()
    except Exception as error:
        raise SystemExit(f"{check.__name__}: {type(error).__name__}: {error}") from error
print("ok")
