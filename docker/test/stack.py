"""The stack as it runs: whole, hardened, watched; and what it does when a part of it is gone."""

import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request

from batch import GENERATE, Batch
from docker import COMPOSE, check, compose, container, docker, eventually, health, inspect, read, run

# Grafana is in no registry of packages, so it has no stand-in: only its files are checked, by what they ask.
SERVICES = ["nats", "worker-embed", "worker-generate", "worker-speech", "logger", "gateway", "prometheus"]
KEYS = ["key-admin", "key-worker", "key-logger", "key-gateway", "key-demo"]
ENDED = ["accounts", "certificates", "tls-server", "tls-client", *KEYS, "setup", "fetch-embed", "fetch-generate", "fetch-speech"]
DASHBOARD = os.path.join(os.path.dirname(__file__), "../grafana/dashboards")
ALERTS = os.path.join(os.path.dirname(__file__), "../../k8s/chart/files/alerts.yaml")
PROJECT = os.environ["COMPOSE_PROJECT_NAME"]
PREVIOUS = os.environ["PREVIOUS"]
DEMO_ROWS = 32


def start():
    up()
    for name in running():
        eventually(f"{name} is healthy", lambda: health(name) == "healthy")
    for service in ENDED:
        state = inspect(container(service))["State"]
        check(f"{service} has done its work", state["Status"] == "exited" and state["ExitCode"] == 0)


def up():
    # Two workers of a model, so that one can be missed.
    compose("up", "--detach", "--no-build", "--scale", "worker-embed=2", *SERVICES, *KEYS)


def running():
    return [container("worker-embed", 2)] + [container(service) for service in SERVICES]


def check_hardening():
    for name in running() + [container(service) for service in ENDED]:
        found = inspect(name)
        host, user = found["HostConfig"], found["Config"]["User"]
        hardened = (
            host["ReadonlyRootfs"]
            and host["CapDrop"] == ["ALL"]
            and not host["CapAdd"]
            and not host["Privileged"]
            and "no-new-privileges:true" in host["SecurityOpt"]
        )
        check(f"{name} is read-only, without capabilities and new privileges", hardened)
        check(f"{name} runs without root", user in ("65532:65532", "nobody"), user)
    inside = docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", container("worker-embed"))
    check("a worker is on the inner network alone", list(json.loads(inside)) == [f"{PROJECT}_queue"])
    check("the inner network leads nowhere else", inspect(f"{PROJECT}_queue")["Internal"])


def demo(service):
    """Runs a service of the profile `demo` to its end."""
    return run(*COMPOSE, "run", "--rm", "--no-deps", "-T", service, check=False)


def check_demo():
    done = demo("demo")
    passed = done.returncode == 0 and f"{DEMO_ROWS} rows" in done.stdout
    check("the demo's batch is answered", passed, done.stdout.partition("\n")[0])
    answer = demo("demo-answer")
    check("the demo shows an answer", answer.returncode == 0 and '"choices"' in answer.stdout, answer.stderr.strip())

    speech = demo("demo-speech")
    heard = speech.returncode == 0 and "Dashwood" in speech.stdout
    check("the demo writes down what is said", heard, speech.stderr.strip())


def check_gateway():
    """OpenAI's API from outside, with a key that is made as compose.yaml says."""
    make = ["exec", "-T", "gateway", "/usr/local/bin/inferq", "keys", "create", "--name", "me", "--output", "json"]
    secret = json.loads(compose(*make))["secret"]
    address = compose("port", "gateway", "8080")

    def ask(secret):
        body = {"model": GENERATE, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
        headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        request = urllib.request.Request(f"http://{address}/v1/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)

    status, answer = ask(secret)
    check("the gateway answers over HTTP", status == 200 and answer["choices"][0]["message"]["content"], f"{answer}")
    check("the gateway lets nobody in without a key", ask("sk-none")[0] == 401)
    Batch.submitted += 1


def check_metrics():
    """Every query of every panel gives a number, every metric of the alerts is there, and every target is up."""
    asked("up", "every target is up", lambda values: len(values) == 6 and set(values) == {1.0})
    for file in sorted(os.listdir(DASHBOARD)):
        with open(os.path.join(DASHBOARD, file), encoding="utf-8") as dashboard:
            panels = json.load(dashboard)["panels"]
        for panel in panels:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "5m")
                asked(query, f"{file}: {panel['title']} {target['refId']} has data", lambda values: values)
    for name in asked_by_alerts():
        # The queue's are gone once it is empty.
        asked(f"count(last_over_time({name}[1h]))", f"alerts: {name} has data", lambda values: values)


def asked_by_alerts():
    """The metrics that the chart's alerts look at."""
    with open(ALERTS, encoding="utf-8") as file:
        rules = re.sub(r"(?m)^ *(#|- alert:|summary:|description:|runbook_url:).*$", "", file.read())
    return sorted(set(re.findall(r"\b(?:inferq|http_server)_\w+", rules)))


def asked(query, name, wanted):
    address = compose("port", "prometheus", "9090")
    url = f"http://{address}/api/v1/query?query={urllib.parse.quote(query)}"

    def passes():
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:
            return False
        # NaN is what a quantile of nothing is.
        return wanted([float(series["value"][1]) for series in found if series["value"][1] != "NaN"])

    eventually(name, passes, 60)


def check_kills():
    """`docker kill` of each container in turn, while a batch runs that needs all of them."""
    answered = set()
    for service in SERVICES:
        batch = Batch(f"kill-{service}").start()
        name = container(service)
        docker("kill", name)
        check(f"kill-{service}: it died amid the batch", batch.is_running())
        # The other worker of this model does without it; all else stands still until it is back, or was not needed.
        if service == "worker-embed":
            answered |= batch.finish()
            docker("start", name)
        else:
            time.sleep(3)
            docker("start", name)
            answered |= batch.finish()
        eventually(f"kill-{service}: {name} is healthy again", lambda: health(name) == "healthy")
    return answered | kill_producer() | crash()


def kill_producer():
    batch = Batch("kill-producer").start()
    docker("kill", batch.container)
    docker("start", batch.container)
    return batch.finish()


def crash():
    """A program that dies by itself is started again by Docker, which leaves alone what `docker kill` has ended."""
    name = container("worker-embed")
    batch = Batch("crash").start()
    # By the daemon's machine, as the kernel does it when memory is short.
    run("kill", "-KILL", str(inspect(name)["State"]["Pid"]))
    eventually(f"crash: {name} was started again", lambda: inspect(name)["RestartCount"] == 1)
    answered = batch.finish()
    eventually(f"crash: {name} is healthy again", lambda: health(name) == "healthy")
    return answered


def check_partition():
    """The only worker of a model loses the network for longer than a health check needs to see it."""
    name, network = container("worker-generate"), f"{PROJECT}_queue"
    batch = Batch("partition", chats=60).start()
    docker("network", "disconnect", network, name)
    eventually(f"partition: {name} is seen to be unhealthy", lambda: health(name) == "unhealthy")
    alive = inspect(name)["State"]["Running"] and inspect(name)["RestartCount"] == 0
    check("partition: it was not restarted for it", alive)
    check("partition: its jobs wait meanwhile", batch.is_running())
    # Compose gave it this name in the network, by which Prometheus finds it.
    docker("network", "connect", "--alias", "worker-generate", network, name)
    answered = batch.finish()
    eventually(f"partition: {name} is healthy again", lambda: health(name) == "healthy")
    return answered


def check_account(answered):
    """What the server has stored, and what the logger wrote, against the answers that producers hold."""
    streams = json.loads(docker("exec", container("nats"), "wget", "-qO-", "http://127.0.0.1:8222/jsz?streams=true"))
    detail = next(account for account in streams["account_details"] if account["name"] == "CORE")["stream_detail"]
    state = {stream["name"]: stream["state"] for stream in detail}
    results, expected = state["INFERQ_RESULTS"], Batch.submitted + DEMO_ROWS + 2
    stored = (results["messages"], results["last_seq"])
    check("the server stored one result for each job, and never a second", stored == (expected, expected), f"{stored}")
    check("no job is left in the queue", state["INFERQ_JOBS"]["messages"] == 0)
    check("no job was given up", state["INFERQ_DEAD"]["messages"] == 0)

    def logged():
        lines = read(container("logger"), "/var/log/inferq/inferq.jsonl")
        return answered <= set(re.findall(r'"kind":"result".*?"job_id":"([^"]+)"', lines))

    eventually("the logger has a line for each result", logged, 60)


def check_rollback():
    """Another tag is one variable, and the queue and its results stay."""
    for image in ("producer", "worker", "logger", "nats"):
        docker("tag", f"inferq-{image}:latest", f"inferq-{image}:{PREVIOUS}")
    os.environ["INFERQ_TAG"] = PREVIOUS
    up()
    for name in running():
        eventually(f"rollback: {name} is healthy", lambda: health(name) == "healthy")
    image = inspect(container("worker-embed"))["Config"]["Image"]
    check("rollback: workers run the tag that was asked for", image == f"inferq-worker:{PREVIOUS}", image)
    said = demo("demo").stdout.partition("\n")[0]
    check("rollback: the demo's answers are still there", f"{DEMO_ROWS} from an earlier run" in said, said)


def check_stop():
    compose("stop")
    for service in ("worker-embed", "worker-generate", "worker-speech", "logger"):
        code = inspect(container(service))["State"]["ExitCode"]
        check(f"stop: {service} ends by itself", code == 0, f"exit code {code}")
