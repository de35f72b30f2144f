"""Turns what `helm template` prints into plain manifests: plain.py FOLDER < RENDERED.

What only Helm reads is left out: hooks become ordinary objects, tests go. The files are numbered in the order in which
they have to be applied: the set-up must have succeeded before the workers' ScaledObjects come.
"""

import pathlib
import sys

import yaml

HEADER = "# Rendered from k8s/chart by k8s/render.sh, with its default values. Change those, not this file.\n"
NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "inferq", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
}


class Dumper(yaml.SafeDumper):
    """Texts of several lines stay readable, and lists are indented as in the chart."""

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


def text(dumper, value):
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


Dumper.add_representer(str, text)


def strip(value):
    """Without the labels and annotations of Helm, and without maps that are empty then."""
    if isinstance(value, list):
        return [strip(item) for item in value]
    if not isinstance(value, dict):
        return value
    mine = lambda key: not key.startswith("helm.sh/") and key != "app.kubernetes.io/managed-by"
    kept = {key: strip(item) for key, item in value.items() if mine(key)}
    return {key: item for key, item in kept.items() if not (key == "annotations" and item == {})}


def file_of(thing):
    component = thing["metadata"]["labels"]["app.kubernetes.io/component"]
    if thing["kind"] == "NetworkPolicy":
        return "00-network.yaml"
    if thing["kind"] in ("PodMonitor", "PrometheusRule") or component == "monitoring":
        return "30-monitoring.yaml"
    if component == "setup":
        return "10-setup.yaml"
    if component == "worker":
        model = thing["metadata"]["labels"].get("inferq/model")
        return f"20-worker-{model}.yaml" if model else "20-registry.yaml"
    return f"20-{component}.yaml"


files = {"00-network.yaml": [NAMESPACE]}
for thing in yaml.safe_load_all(sys.stdin):
    if thing and "test" != thing["metadata"].get("annotations", {}).get("helm.sh/hook"):
        files.setdefault(file_of(thing), []).append(strip(thing))

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for stale in folder.glob("*.yaml"):
    stale.unlink()
for name, things in files.items():
    documents = yaml.dump_all(things, Dumper=Dumper, sort_keys=False, explicit_start=True, width=150, allow_unicode=True)
    (folder / name).write_text(HEADER + documents, encoding="utf-8")
