// What OpenAI's own client for Node, unmodified, sees of the gateway. Its argument is the gateway's URL.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const user = (content) => [{ role: "user", content }];

async function chat() {
  const answer = await client.chat.completions.create({ model: "echo", messages: user("hello"), temperature: 0 });
  assert.equal(answer.choices[0].message.content, "hello");
  assert.match(answer._request_id, /^req_/);
}

async function streamed() {
  const options = { include_usage: true };
  const stream = await client.chat.completions.create({
    model: "echo", messages: user("a few words"), stream: true, stream_options: options,
  });
  let [text, usage] = ["", null];
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage;
  }
  assert.equal(text, "a few words");
  assert.equal(usage.completion_tokens, text.length);
  const whole = await client.chat.completions.stream({ model: "echo", messages: user("together") }).finalContent();
  assert.equal(whole, "together");
}

// The echo model says the call that it is told, then what the tool said.
async function tools() {
  const parameters = { type: "object", properties: { of: { type: "number" } }, required: ["of"] };
  const asked = [];
  const double = { name: "double", parameters, parse: JSON.parse, function: ({ of }) => (asked.push(of), `twice: ${2 * of}`) };
  const call = '<tool_call>\n{"name": "double", "arguments": {"of": 21}}\n</tool_call>';
  const ask = { model: "echo", messages: user(call), tools: [{ type: "function", function: double }] };
  assert.equal(await client.chat.completions.runTools(ask).finalContent(), "twice: 42");
  assert.equal(await client.chat.completions.runTools({ ...ask, stream: true }).finalContent(), "twice: 42");
  assert.deepEqual(asked, [21, 21]);
}

async function embeddings() {
  const plain = await client.embeddings.create({ model: "echo", input: ["one", "two"] });
  const floats = await client.embeddings.create({ model: "echo", input: ["one", "two"], encoding_format: "float" });
  plain.data.forEach((item, place) => {
    assert.equal(item.embedding.length, floats.data[place].embedding.length);
    item.embedding.forEach((value, at) => assert.ok(Math.abs(value - floats.data[place].embedding[at]) < 1e-6));
  });
}

async function errors() {
  const create = (body) => client.chat.completions.create({ model: "echo", messages: user("x"), ...body });
  await assert.rejects(create({ model: "nobody" }), OpenAI.NotFoundError);
  await assert.rejects(create({ temperature: 9 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
  const impatient = client.withOptions({ timeout: 300 });
  const slow = impatient.chat.completions.create({ model: "echo", messages: user("x".repeat(4000)) });
  await assert.rejects(slow, OpenAI.APIConnectionTimeoutError);
}

async function batches() {
  const line = (name) => JSON.stringify({
    custom_id: name, method: "POST", url: "/v1/chat/completions", body: { model: "echo", messages: user(name) },
  });
  const file = await client.files.create({ file: await toFile(Buffer.from(`${line("a")}\n${line("b")}\n`), "in.jsonl"), purpose: "batch" });
  let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
  const end = Date.now() + 60_000;
  while (!["completed", "failed"].includes(batch.status) && Date.now() < end) {
    await new Promise((resume) => setTimeout(resume, 100));
    batch = await client.batches.retrieve(batch.id);
  }
  assert.equal(batch.status, "completed");
  const text = await (await client.files.content(batch.output_file_id)).text();
  const names = text.trim().split("\n").map((row) => JSON.parse(row).custom_id).sort();
  assert.deepEqual(names, ["a", "b"]);
  const listed = [];
  for await (const item of client.batches.list({ limit: 1 })) listed.push(item.id);
  assert.ok(listed.includes(batch.id));
  assert.equal((await client.files.delete(file.id)).deleted, true);
}

assert.equal(JSON.parse(readFileSync(new URL("package.json", import.meta.url))).private, true);
for (const check of [chat, streamed, tools, embeddings, errors, batches]) await check();
console.log("ok");
