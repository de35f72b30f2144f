"""Who is let in, and whose key is where: the borders that the accounts of `inferq tenants` draw in the stack."""

import os
import socket
import ssl

import stack
from batch import EMBED, Batch
from docker import COMPOSE, WORK, check, compose, container, docker, eventually, health, inspect, run

PROJECT = os.environ["COMPOSE_PROJECT_NAME"]
# The volumes of keys, certificates and accounts that a service has.
HELD = {
    "nats": {"accounts", "tls-server"},
    "setup": {"key-admin", "tls-client"},
    "worker-embed": {"key-worker", "tls-client"},
    "worker-generate": {"key-worker", "tls-client"},
    "worker-speech": {"key-worker", "tls-client"},
    "logger": {"key-logger", "tls-client"},
    "gateway": {"key-gateway", "tls-client"},
    "prometheus": set(),
}


def check_accounts():
    for service, held in HELD.items():
        mounts = {mount.get("Name", "").removeprefix(f"{PROJECT}_") for mount in inspect(container(service))["Mounts"]}
        found = {name for name in mounts if name in ("accounts", "keys") or name.startswith(("key-", "tls-"))}
        check(f"{service} has its own key and no other", found == held, " ".join(sorted(found)))
    folder = take_certificates()
    said = greet_without_key(folder, has_certificate=True)
    check("NATS lets nobody in without a key", "Authorization Violation" in said, said.strip())
    said = greet_without_key(folder, has_certificate=False)
    check("NATS does not speak with whom has no certificate", "certificate required" in said, said.strip())
    check_tenants()
    check_rotation()


def take_certificates():
    """What README.md says that a client on this machine is given."""
    folder = os.path.join(WORK, "tls")
    docker("cp", f"{container('tls-client')}:/data", folder)
    return folder


def greet_without_key(folder, has_certificate):
    context = ssl.create_default_context(cafile=os.path.join(folder, "ca.pem"))
    if has_certificate:
        context.load_cert_chain(os.path.join(folder, "client.pem"), os.path.join(folder, "client.key"))
    host, port = compose("port", "nats", "4222").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        greeting = plain.recv(4096)
        assert greeting.startswith(b"INFO "), greeting
        said = ""
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as server:
                server.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
                while received := server.recv(4096):
                    said += received.decode()
        except OSError as error:
            said += str(error)
    return said


def check_tenants():
    """A tenant is added as README.md says, and neither of two sees what is the other's."""
    compose("run", "--rm", "accounts", "add", "other")
    compose("restart", "nats")
    eventually("tenants: NATS knows the new one", lambda: health(container("nats")) == "healthy")
    key = take_key("tenant-other")
    submit = ["submit", "--model", EMBED, "--id", "secret", "--input", "of the other one", "--wait"]
    answer = as_tenant("other", *submit, key=key)
    check("tenants: a new one is answered", answer.returncode == 0, answer.stderr.strip())
    Batch.submitted += 1
    read = ["results", "secret"]
    check("tenants: it reads its result again", as_tenant("other", *read, key=key).returncode == 0)
    stranger = as_tenant("other", *read)
    check("tenants: another one cannot", refused(stranger), stranger.stderr.strip())
    forged = as_tenant("other", *submit[:-1])
    check("tenants: nor can it submit in its name", refused(forged), forged.stderr.strip())
    operator = run(*COMPOSE, "run", "--rm", "--no-deps", "-T", "setup", *read, "--tenant", "other", check=False)
    check("tenants: the operator can read it", operator.returncode == 0 and '"embedding"' in operator.stdout)


def check_rotation():
    """The workers are given another key, as README.md says, and nobody is let in with the old one."""
    old = take_key("worker")
    compose("run", "--rm", "accounts", "rotate", "--service", "worker")
    stack.up()
    compose("kill", "--signal", "HUP", "nats")

    def is_shut_out():
        return "authorization violation" in as_tenant("demo", "results", "secret", key=old).stderr.lower()

    eventually("rotation: the old key is refused", is_shut_out)
    answer = as_tenant("demo", "submit", "--model", EMBED, "--input", "after the rotation", "--wait")
    check("rotation: workers go on with the new one", answer.returncode == 0, answer.stderr.strip())
    Batch.submitted += 1


def take_key(name):
    """Brings a key to where the user of a container can read it."""
    key = os.path.join(WORK, f"{name}.nk")
    docker("cp", f"{container('accounts')}:/inferq-accounts/keys/{name}.nk", key)
    os.chmod(key, 0o644)
    return key


def as_tenant(name, *arguments, key=None):
    """Runs `inferq` in the name of a tenant: with the key that is given, or with the demo's."""
    given = ["--volume", f"{key}:/key.nk:ro", "--env", "NATS_NKEY=/key.nk"] if key else []
    options = ["--rm", "--no-deps", "-T", "--env", f"INFERQ_TENANT={name}", *given]
    return run(*COMPOSE, "run", *options, "demo", *arguments, check=False)


def refused(done):
    return done.returncode != 0 and "embedding" not in done.stdout
