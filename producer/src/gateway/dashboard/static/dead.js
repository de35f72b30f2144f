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
    { head: "Job", of: (letter) => letter.job_id, kind: () => "name" },
    { head: "Class", of: (letter) => letter.class ?? "–", kind: () => "bad" },
    { head: "Why", of: (letter) => letter.reason, kind: () => "name" },
    { head: "Tries", of: (letter) => letter.attempts, number: true },
    { head: "Model", of: (letter) => `${letter.model} · ${letter.lane}`, kind: () => "name" },
    { head: "Tenant", of: (letter) => letter.tenant },
    { head: "When", of: (letter) => time(letter.time) },
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
      // Not disabled: it would lose the focus.
      if (made.ariaBusy === "true") return;
      made.ariaBusy = "true";
      try {
        await act();
      } catch (error) {
        open(`Job ${letter.job_id}`, error.message);
      }
      made.ariaBusy = "false";
    });
    group.append(made, " ");
  };
  button("Replay", async () => {
    await ask(secret, `${place}/replay`, "POST");
    // It may have become a letter again already, and their number be the same.
    shownCount = -1;
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
