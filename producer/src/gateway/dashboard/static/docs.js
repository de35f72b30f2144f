// The API as a page, made of the OpenAPI document.

const place = document.querySelector("#operations");
const api = await (await fetch("/openapi.json")).json();

function element(name, text, ...inside) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...inside);
  return made;
}

/** A schema with what it refers to, one level after the other, and no further than it repeats itself. */
function open(schema, seen = []) {
  if (Array.isArray(schema)) return schema.map((part) => open(part, seen));
  if (schema === null || typeof schema !== "object") return schema;
  const name = schema.$ref?.split("/").pop();
  if (name) return seen.includes(name) ? { type: name } : open(api.components.schemas[name], [...seen, name]);
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, open(value, seen)]));
}

function schemaOf(title, content) {
  const [kind, { schema }] = Object.entries(content)[0];
  return element("details", "", element("summary", `${title} (${kind})`), element("pre", JSON.stringify(open(schema), null, 2)));
}

const tags = new Map();
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const parts = [element("h3", `${method.toUpperCase()} ${path}`), element("p", operation.summary)];
    if (operation.requestBody) parts.push(schemaOf("Request", operation.requestBody.content));
    const [status, answer] = Object.entries(operation.responses)[0];
    parts.push(schemaOf(`Answer ${status}`, answer.content));
    const tag = operation.tags[0];
    if (!tags.has(tag)) tags.set(tag, element("section", "", element("h2", tag)));
    tags.get(tag).append(...parts);
  }
}
place.append(...tags.values());
