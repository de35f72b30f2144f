"""Batches of jobs that run in a container while something is broken, and the account of their answers."""

import json
import os
from collections import Counter

from docker import COMPOSE, WORK, check, docker, eventually, inspect, read, run

EMBED, GENERATE = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
# Enough for an engine to be at work for a while.
WORDS = "the queue holds what the workers have not taken and nothing of it is lost when one of them is gone "


class Batch:
    """A batch file with texts of its own, so that no answer comes from the cache."""

    submitted = 0

    def __init__(self, name, embeddings=300, chats=30):
        self.name = name
        self.container = f"{os.environ['COMPOSE_PROJECT_NAME']}-batch-{name}"
        bodies = [{"model": EMBED, "input": f"{name} {number} {WORDS * 4}"} for number in range(embeddings)]
        bodies += [chat(f"{name}: say the number {number}") for number in range(chats)]
        self.ids = [f"{name}-{number}" for number in range(len(bodies))]
        with open(os.path.join(WORK, f"{name}.jsonl"), "w", encoding="utf-8") as file:
            for custom_id, body in zip(self.ids, bodies):
                url = "/v1/embeddings" if "input" in body else "/v1/chat/completions"
                file.write(json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n")
        Batch.submitted += len(bodies)

    def start(self):
        # The profile's service, so with its user, its limits and its volume.
        mount = f"{WORK}/{self.name}.jsonl:/jobs/{self.name}.jsonl:ro"
        command = ["batch", "run", f"/jobs/{self.name}.jsonl", "--out", f"/data/{self.name}.jsonl"]
        run(*COMPOSE, "run", "--detach", "--no-deps", "--name", self.container, "--volume", mount, "demo", *command)
        eventually(f"{self.name}: the batch has begun", lambda: self.answered() > 0)
        return self

    def answered(self):
        return read(self.container, f"/data/{self.name}.jsonl").count("\n")

    def is_running(self):
        return inspect(self.container)["State"]["Running"]

    def finish(self):
        eventually(f"{self.name}: the batch has ended", lambda: not self.is_running(), 300)
        code = inspect(self.container)["State"]["ExitCode"]
        rows = [json.loads(line) for line in read(self.container, f"/data/{self.name}.jsonl").splitlines()]
        times = Counter(row["custom_id"] for row in rows if row["response"]["status_code"] == 200)
        exact = code == 0 and sorted(times) == sorted(self.ids) and set(times.values()) == {1}
        logs = "" if exact else f"exit code {code} {run('docker', 'logs', '--tail', '5', self.container).stderr}"
        check(f"{self.name}: every job is answered exactly once", exact, f"{len(rows)} of {len(self.ids)} {logs}")
        docker("rm", "--force", self.container)
        return {row["id"] for row in rows}


def chat(text):
    messages = [{"role": "user", "content": text}]
    return {"model": GENERATE, "messages": messages, "temperature": 0, "max_tokens": 16}
