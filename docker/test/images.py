"""What each image is: small, labelled, without root, shell or undeclared parts."""

import json

from docker import check, docker, inspect, run

# Megabytes, without the weights of a model.
SIZES = {"producer": 60, "worker": 120, "logger": 60}
PROGRAMS = {"producer": "inferq", "worker": "inferq-worker", "logger": "inferq-logger"}
SHELLS = {"sh", "bash", "dash", "ash", "busybox"}


def check_images():
    for image, limit in SIZES.items():
        name, program = f"inferq-{image}:latest", PROGRAMS[image]
        config = inspect(name)["Config"]
        megabytes = inspect(name)["Size"] / 1e6
        check(f"{name} is below {limit} MB", megabytes < limit, f"{megabytes:.1f} MB")
        check(f"{name} runs as 65532", config["User"] == "65532:65532", config["User"])
        labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
        told = all(labels.get(key) not in (None, "", "unknown", "0.0.0") for key in ("version", "revision", "created"))
        check(f"{name} says version and revision", told and labels["title"] == f"inferq-{image}", labels["version"])
        says = docker("run", "--rm", "--read-only", "--cap-drop", "ALL", name, "--version")
        check(f"{name} starts, in the version of its label", says == f"{program} {labels['version']}", says)
        check_files(name, program)


def check_files(name, program):
    made = docker("create", name)
    try:
        export = run("sh", "-c", f"docker export {made} | tar -t").stdout.split()
        bill = json.loads(run("sh", "-c", f"docker cp {made}:/usr/share/sbom/{program}.cdx.json - | tar -xO").stdout)
    finally:
        docker("rm", made)
    found = [path for path in export if path.rpartition("/")[2] in SHELLS]
    check(f"{name} has no shell", not found, " ".join(found))
    crates = {component["name"] for component in bill["components"]}
    check(f"{name} has a bill of materials", {"async-nats", "tokio"} <= crates, f"{len(crates)} crates")
