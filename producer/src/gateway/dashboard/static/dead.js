// Dead letters: fetched when their number has changed, since they are many more than what moves.

import { ask } from "./events.js";
import { show } from "./tables.js";
import { time } from "./words.js";

const dialog = document.querySelector("#letter");
let shownCount = -1;

export async function update(secret, count) {
  if (count === shownCount) return;
  shownCount = count;
  const { data, show_payloads: canShow } = await ask(secret, "/dashboard/dead");
  const columns = [
    { head: "When", of: (letter) => time(letter.time) },
    { head: "Job", of: (letter) => letter.job_id },
    { head: "Tenant", of: (letter) => letter.tenant },
    { head: "Model", of: (letter) => `${letter.model} · ${letter.lane}` },
    { head: "Class", of: (letter) => letter.class ?? "–", kind: () => "bad" },
    { head: "Tries", of: (letter) => letter.attempts, number: true },
    { head: "Why", of: (letter) => letter.reason, kind: () => "reason" },
    { head: "Do", of: (letter, cell) => actions(letter, cell, secret, canShow) },
  ];
  show(document.querySelector("#dead"), columns, data, (letter) => `${letter.sequence}`, "None: no job was given up.");
}

function actions(letter, cell, secret, canShow) {
  if (cell.firstChild) return cell.firstChild;
  const place = `/dashboard/dead/${encodeURIComponent(letter.tenant)}/${encodeURIComponent(letter.job_id)}`;
  const group = document.createElement("span");
  const button = (text, act) => {
    const made = document.createElement("button");
    made.textContent = text;
    made.setAttribute("aria-label", `${text} job ${letter.job_id}`);
    made.addEventListener("click", async () => {
      made.disabled = true;
      try {
        await act();
      } catch (error) {
        open(`Job ${letter.job_id}`, error.message);
      }
      made.disabled = false;
    });
    group.append(made, " ");
  };
  button("Replay", async () => {
    await ask(secret, `${place}/replay`, "POST");
    cell.parentElement.remove();
  });
  if (canShow) {
    button("Show", async () => open(`Job ${letter.job_id}`, JSON.stringify(await ask(secret, place), null, 2)));
  }
  return group;
}

function open(head, text) {
  dialog.querySelector("#letter-head").textContent = head;
  dialog.querySelector("#letter-body").textContent = text;
  dialog.showModal();
}
