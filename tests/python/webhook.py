"""Whether OpenAI's own client believes a webhook. Its arguments are the secret, the headers as JSON, the body, and the type and
the id that it has to have."""

import json
import sys

import openai

secret, headers, body, kind, name = sys.argv[1:]
client = openai.OpenAI(api_key="none", webhook_secret=secret)
event = client.webhooks.unwrap(body, json.loads(headers))
assert event.type == kind and event.data.id == name, event
try:
    client.webhooks.unwrap(body + " ", json.loads(headers))
except openai.InvalidWebhookSignatureError:
    pass
else:
    raise SystemExit("a changed body was believed")
