"""What OpenAI's own Python client, unmodified, gets from a real model behind the gateway. Its arguments are the gateway's URL
and the names of a model that generates, of one that embeds and of one that transcribes, and a folder with speech."""

import base64
import json
import math
import os
import sys
import time

import openai

URL, GENERATE, EMBED, TRANSCRIBE, SPEECH = sys.argv[1:]
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
    place = {"type": "string", "enum": ["Paris", "Rome"]}
    parameters = {"type": "object", "properties": {"city": place}, "required": ["city"], "additionalProperties": False}
    look = {"type": "function", "function": {"name": "look_up", "parameters": parameters, "strict": True}}
    create = lambda **more: client.chat.completions.create(
        model=GENERATE, messages=CAPITAL, tools=[look], temperature=0, max_completion_tokens=60, **more
    )
    choice = create(tool_choice="required", parallel_tool_calls=False).choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    assert call.function.name == "look_up" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome"), call

    # The client's own accumulator puts the parts together.
    named = {"type": "function", "function": {"name": "look_up"}}
    with client.chat.completions.stream(
        model=GENERATE, messages=CAPITAL, tools=[look], tool_choice=named, temperature=0, max_completion_tokens=60
    ) as stream:
        kinds = [event.type for event in stream]
        said = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds, kinds
    assert said.tool_calls[0].function.parsed_arguments["city"] in ("Paris", "Rome"), said

    answered = {"role": "tool", "tool_call_id": call.id, "content": "It is Paris."}
    after = client.chat.completions.create(
        model=GENERATE, messages=[*CAPITAL, choice.message, answered], tools=[look], tool_choice="none", max_tokens=16
    )
    assert after.choices[0].message.content, after


def streamed_answers():
    ask = dict(
        model=GENERATE, messages=CAPITAL, n=2, seed=7, temperature=1, max_completion_tokens=8, logprobs=True, top_logprobs=1
    )
    whole = client.chat.completions.create(**ask)
    texts, tokens = ["", ""], [[], []]
    with client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices], texts
    assert tokens == [choice.logprobs.content for choice in whole.choices]
    assert chunk.usage == whole.usage, (chunk.usage, whole.usage)


def transcriptions():
    path = os.path.join(SPEECH, "clips", "0880.flac")
    hear = lambda **more: client.audio.transcriptions.create(model=TRANSCRIBE, file=open(path, "rb"), **more)
    assert "young man" in hear().text
    assert "young man" in hear(response_format="text")
    assert "-->" in hear(response_format="srt") and hear(response_format="vtt").startswith("WEBVTT")
    told = hear(response_format="verbose_json", timestamp_granularities=["word", "segment"], language="en", prompt="A")
    assert told.language == "english" and math.isclose(told.duration, 2.99, abs_tol=0.01), told
    assert told.segments[0].end > 1 and told.segments[0].avg_logprob < 0 and told.words[-1].word == "man.", told
    assert hear(stream=True) is not None, "it is ignored, as OpenAI does with whisper-1"


def refused_audio():
    refused = [
        (("a.wav", b"no audio at all"), {}, "file"),
        (open(os.path.join(SPEECH, "hostile", "ten-hours.flac"), "rb"), {}, "file"),
        (open(os.path.join(SPEECH, "clips", "0880.flac"), "rb"), {"language": "tlh"}, "language"),
        (open(os.path.join(SPEECH, "clips", "0880.flac"), "rb"), {"temperature": 7}, "temperature"),
    ]
    for file, more, param in refused:
        try:
            client.audio.transcriptions.create(model=TRANSCRIBE, file=file, **more)
        except openai.BadRequestError as error:
            assert error.param == param, error
        else:
            raise AssertionError(f"{param} was taken")
    try:
        client.audio.translations.create(model=TRANSCRIBE, file=open(os.path.join(SPEECH, "clips", "0880.flac"), "rb"))
    except openai.BadRequestError as error:
        assert error.code == "unsupported_endpoint", error
    else:
        raise AssertionError("a model of English alone translated")


def audio_batch():
    file = base64.b64encode(open(os.path.join(SPEECH, "formats", "speech.opus"), "rb").read()).decode()
    url = "/v1/audio/transcriptions"
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": TRANSCRIBE, "file": file}}
    upload = client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=upload.id, endpoint=url, completion_window="24h")
    while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed"):
        time.sleep(0.2)
    answer = json.loads(client.files.content(batch.output_file_id).text)
    assert "amiable" in answer["response"]["body"]["text"], answer


CHECKS = [chat, logprobs, several, schema, stops, embeddings, tools, streamed_answers]
for check in [*CHECKS, transcriptions, refused_audio, audio_batch]:
    try:
        check()
    except Exception as error:
        raise SystemExit(f"{check.__name__}: {type(error).__name__}: {error}") from error
print("ok")
