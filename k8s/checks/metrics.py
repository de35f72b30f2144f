"""Holds alerts, dashboard, runbook and OBSERVABILITY.md together: metrics.py RULES_OUT.

Writes the dashboard's queries as recording rules to RULES_OUT, for promtool to parse. Prints each problem; exits with 1.
"""

import json
import pathlib
import re
import sys

import yaml

k8s = pathlib.Path(__file__).parent.parent
files = k8s / "chart/files"
problems = []

# Its tables have the metrics' names first; a histogram has three series.
observability = (k8s.parent / "OBSERVABILITY.md").read_text(encoding="utf-8")
known = set(re.findall(r"^\| `(inferq_[a-z_]+)`", observability, re.M))
known |= {f"{name}_{suffix}" for name in known if name.endswith("_seconds") for suffix in ("bucket", "sum", "count")}
# Labels that the PodMonitors add.
labels = {"inferq_revision"}


def check_query(where, query, optional=False):
    for name in set(re.findall(r"\b(?:inferq|nats)_[a-z_]+", query)) - labels:
        if name.startswith("nats_") and not optional:
            problems.append(f"{where}: {name} is of the NATS exporter, which is optional")
        if name.startswith("inferq_") and name not in known:
            problems.append(f"{where}: OBSERVABILITY.md has no metric {name}")


runbook = set(re.findall(r"^## (Inferq\w+)$", (k8s / "RUNBOOK.md").read_text(encoding="utf-8"), re.M))
tests = (k8s / "checks/alerts-test.yaml").read_text(encoding="utf-8")
alerts = set()
for file in ("alerts.yaml", "alerts-nats.yaml"):
    for group in yaml.safe_load((files / file).read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            name = rule["alert"]
            alerts.add(name)
            check_query(name, rule["expr"], optional=file == "alerts-nats.yaml")
            if rule["annotations"].get("runbook_url") != f"RUNBOOK.md#{name.lower()}":
                problems.append(f"{name}: its runbook_url is not RUNBOOK.md#{name.lower()}")
            if rule["labels"].get("severity") not in ("info", "warning", "critical"):
                problems.append(f"{name}: its severity is none of info, warning, critical")
            if f'alertname="{name}"' not in tests:
                problems.append(f"{name}: checks/alerts-test.yaml does not test it")
problems += [f"RUNBOOK.md has no section {name}" for name in sorted(alerts - runbook)]
problems += [f"RUNBOOK.md: there is no alert {name}" for name in sorted(runbook - alerts)]

rules = []
optional = False
for panel in json.loads((files / "dashboard.json").read_text(encoding="utf-8"))["panels"]:
    if panel["type"] == "row":
        optional = "optional" in panel["title"]
        continue
    for target in panel["targets"]:
        check_query(panel["title"], target["expr"], optional)
        query = target["expr"].replace("$__rate_interval", "5m")
        rules.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": query})
pathlib.Path(sys.argv[1]).write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")

print("\n".join(problems), end="\n" if problems else "")
sys.exit(1 if problems else 0)
