// The page: one connection, from which all tables live.

import * as dead from "./dead.js";
import { Refused, follow } from "./events.js";
import { show } from "./tables.js";
import { count, duration, rate } from "./words.js";

const RETRY_MILLISECONDS = 2000;
const SECRET = "inferq-key";
const link = document.querySelector("#link");
const form = document.querySelector("#key");
const main = document.querySelector("main");

const queues = [
  { head: "Model", of: (queue) => queue.model },
  { head: "Lane", of: (queue) => queue.lane },
  { head: "Waiting", of: (queue) => count(queue.queued), number: true },
  { head: "In flight", of: (queue) => count(queue.in_flight), number: true },
  { head: "Oldest", of: (queue) => duration(queue.age_seconds), number: true },
  { head: "Rate", of: (queue) => rate(queue.rate), number: true },
  { head: "Empty in", of: (queue) => duration(queue.queued ? queue.backlog_seconds : 0), number: true },
  { head: "Redelivered", of: (queue) => count(queue.redelivered), number: true },
];

const workers = [
  { head: "Worker", of: (worker) => worker.worker },
  { head: "Model", of: (worker) => worker.model },
  { head: "Device", of: (worker) => worker.device ?? "–" },
  { head: "Jobs held", of: (worker) => count(worker.in_flight), number: true },
  { head: "Batch", of: (worker) => worker.batch_size?.toFixed(1) ?? "–", number: true },
  { head: "Tokens", of: (worker) => (worker.unit_seconds ? rate(1 / worker.unit_seconds) : "–"), number: true },
  { head: "Tokens a job", of: (worker) => (worker.job_cost ? count(Math.round(worker.job_cost)) : "–"), number: true },
];

const KINDS = { completed: "good", failed: "bad", expired: "bad", cancelled: "dim" };
const batches = [
  { head: "Batch", of: (batch) => batch.id, kind: () => "name" },
  { head: "Tenant", of: (batch) => batch.tenant },
  { head: "Status", of: (batch) => batch.status.replace("_", " "), kind: (batch) => KINDS[batch.status] ?? "" },
  { head: "Progress", of: progress },
  { head: "Done", of: (batch) => `${count(done(batch))} of ${count(batch.request_counts.total)}`, number: true },
  { head: "Failed", of: (batch) => count(batch.request_counts.failed), number: true },
  { head: "Files", of: files },
];

function done(batch) {
  return batch.request_counts.completed + batch.request_counts.failed;
}

function progress(batch, cell) {
  const bar = cell.firstChild ?? document.createElement("progress");
  bar.max = Math.max(batch.request_counts.total, 1);
  bar.value = done(batch);
  bar.setAttribute("aria-label", `progress of ${batch.id}`);
  return bar;
}

function files(batch, cell) {
  const ids = [["output", batch.output_file_id], ["errors", batch.error_file_id]].filter(([, id]) => id);
  const known = ids.map(([, id]) => id).join();
  if (cell.firstChild?.dataset?.known === known) return cell.firstChild;
  const group = document.createElement("span");
  group.dataset.known = known;
  for (const [name, id] of ids) {
    const button = document.createElement("button");
    button.textContent = name;
    button.setAttribute("aria-label", `download ${name} of ${batch.id}`);
    button.addEventListener("click", () => download(batch, id, name));
    group.append(button, " ");
  }
  return group;
}

async function download(batch, id, name) {
  const secret = sessionStorage.getItem(SECRET);
  const headers = secret ? { authorization: `Bearer ${secret}` } : {};
  const answer = await fetch(`/v1/files/${id}/content`, { headers });
  if (!answer.ok) {
    link.textContent = `file ${id}: status ${answer.status}; it belongs to another tenant, or is gone`;
    return;
  }
  const place = document.createElement("a");
  place.href = URL.createObjectURL(await answer.blob());
  place.download = `${batch.id}_${name}.jsonl`;
  place.click();
  URL.revokeObjectURL(place.href);
}

function draw(snapshot) {
  const { jobs, results, dead: letters } = snapshot;
  document.querySelector("#totals").textContent =
    `${count(jobs.messages)} jobs · ${count(results.messages)} results · ${count(letters.messages)} dead letters`;
  show(document.querySelector("#queues"), queues, snapshot.queues, (queue) => `${queue.model} ${queue.lane}`, "No models.");
  show(document.querySelector("#workers"), workers, snapshot.workers, (worker) => worker.worker, "No worker answers.");
  show(document.querySelector("#batches"), batches, snapshot.batches, (batch) => batch.id, "No batches.");
  dead.update(sessionStorage.getItem(SECRET), letters.messages).catch((error) => lost(error.message));
  link.textContent = `live, ${new Date(snapshot.time).toLocaleTimeString()}`;
  link.className = "";
}

function lost(reason) {
  link.textContent = reason;
  link.className = "lost";
}

function askForKey(reason) {
  form.hidden = false;
  main.hidden = true;
  document.querySelector("#refused").textContent = sessionStorage.getItem(SECRET) ? reason : "";
  link.textContent = "closed";
  document.querySelector("#secret").focus();
}

async function live() {
  for (;;) {
    try {
      await follow(sessionStorage.getItem(SECRET), "/dashboard/events", draw);
      lost("connection lost, trying again");
    } catch (error) {
      if (error instanceof Refused && [401, 403].includes(error.status)) return askForKey(error.message);
      lost("no connection, trying again");
    }
    await new Promise((resume) => setTimeout(resume, RETRY_MILLISECONDS));
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(SECRET, document.querySelector("#secret").value.trim());
  form.hidden = true;
  main.hidden = false;
  live();
});
live();
