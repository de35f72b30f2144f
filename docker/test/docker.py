"""Docker and Compose by their command lines, checks that print a line each, and waiting."""

import json
import os
import subprocess
import time

COMPOSE = os.environ["COMPOSE"].split()
WORK = os.environ["WORK"]
PATIENCE = 180

results = []


def run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done


def docker(*arguments):
    return run("docker", *arguments).stdout.strip()


def compose(*arguments):
    return run(*COMPOSE, *arguments).stdout.strip()


def inspect(name):
    return json.loads(docker("inspect", name))[0]


def container(service, number=1):
    return f"{os.environ['COMPOSE_PROJECT_NAME']}-{service}-{number}"


def health(name):
    state = inspect(name)["State"]
    return state["Health"]["Status"] if "Health" in state else state["Status"]


def read(name, path):
    """A file of a container, running or not, as text; empty where there is none yet."""
    done = run("docker", "cp", f"{name}:{path}", os.path.join(WORK, "copied"), check=False)
    if done.returncode != 0:
        return ""
    with open(os.path.join(WORK, "copied"), encoding="utf-8") as file:
        return file.read()


def check(name, passed, detail=""):
    results.append(bool(passed))
    print(f"{'ok    ' if passed else 'FAILED'} {name}{f': {detail}' if detail else ''}", flush=True)


def eventually(name, condition, seconds=PATIENCE):
    """A check that something comes true in time; says how long that took."""
    started = time.monotonic()
    while True:
        value = condition()
        elapsed = time.monotonic() - started
        if value or elapsed > seconds:
            check(name, value, f"{elapsed:.0f} s")
            return value
        time.sleep(0.5)
