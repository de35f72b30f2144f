"""Whether OpenAI's own client believes a webhook. Its arguments are the secret, the headers as JSON and the body."""

import json
import sys

import openai

secret, headers, body = sys.argv[1:]
client = openai.OpenAI(api_key="none", webhook_secret=secret)
event = client.webhooks.unwrap(body, json.loads(headers))
assert event.type == "batch.completed" and event.data.id.startswith("batch_"), event
try:
    client.webhooks.unwrap(body + " ", json.loads(headers))
except openai.InvalidWebhookSignatureError:
    pass
else:
    raise SystemExit("a changed body was believed")
