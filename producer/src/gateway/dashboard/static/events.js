// Server-sent events by fetch, since an EventSource cannot name a key; and requests with the same key.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(secret) {
  return secret ? { authorization: `Bearer ${secret}` } : {};
}

export async function ask(secret, path, method = "GET") {
  const answer = await fetch(path, { method, headers: headers(secret) });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, body.error?.message ?? `status ${answer.status}`);
  return body;
}

/** Calls `seen` with the data of each event until the connection ends. */
export async function follow(secret, path, seen) {
  const answer = await fetch(path, { headers: headers(secret) });
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, body.error?.message ?? `status ${answer.status}`);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) seen(JSON.parse(data));
    }
  }
}
