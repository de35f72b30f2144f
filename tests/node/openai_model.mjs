// What OpenAI's own client for Node, unmodified, hears from a real model behind the gateway. Its arguments are the gateway's
// URL, the name of a model that transcribes, and a folder with speech.

import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import { join } from "node:path";
import OpenAI from "openai";

const [url, model, speech] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const hear = (more) => {
  const file = createReadStream(join(speech, "clips", "0880.flac"));
  return client.audio.transcriptions.create({ model, file, ...more });
};

assert.match((await hear({})).text, /young man/);
assert.match(await hear({ response_format: "srt" }), /-->/);
const told = await hear({ response_format: "verbose_json", timestamp_granularities: ["word", "segment"] });
assert.ok(Math.abs(told.duration - 2.99) < 0.01 && told.segments[0].end > 1 && told.words.at(-1).word === "man.");
await assert.rejects(hear({ language: "tlh" }), (error) => error instanceof OpenAI.BadRequestError && error.param === "language");
console.log("ok");
