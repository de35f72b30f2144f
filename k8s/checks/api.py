"""A stand-in for a Kubernetes API server, as far as Helm needs one: it keeps objects, watches them, and refuses changes of
what Kubernetes does not let change. Nothing runs: a Job is done, or has failed, as soon as it is there.
"""

import base64
import http.server
import json
import re
import threading
import time
import urllib.parse
import uuid

import yaml

# Group and version, kind, plural, whether it is in a namespace.
KINDS = [
    ("v1", "Namespace", "namespaces", False),
    ("v1", "ConfigMap", "configmaps", True),
    ("v1", "Secret", "secrets", True),
    ("v1", "Service", "services", True),
    ("v1", "ServiceAccount", "serviceaccounts", True),
    ("v1", "Pod", "pods", True),
    ("v1", "PersistentVolumeClaim", "persistentvolumeclaims", True),
    ("apps/v1", "Deployment", "deployments", True),
    ("batch/v1", "Job", "jobs", True),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", True),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", True),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", True),
    ("networking.k8s.io/v1", "Ingress", "ingresses", True),
    ("rbac.authorization.k8s.io/v1", "Role", "roles", True),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", True),
    ("keda.sh/v1alpha1", "ScaledObject", "scaledobjects", True),
    ("monitoring.coreos.com/v1", "PodMonitor", "podmonitors", True),
    ("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules", True),
    ("cert-manager.io/v1", "Certificate", "certificates", True),
]
# What Kubernetes keeps as it was first, by kind, as paths below the object.
IMMUTABLE = {
    "Deployment": [("spec", "selector")],
    "Job": [("spec", "template"), ("spec", "selector"), ("spec", "completions")],
    "PersistentVolumeClaim": [("spec", "accessModes"), ("spec", "storageClassName"), ("spec", "selector")],
    "RoleBinding": [("roleRef",)],
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
PATH = re.compile(r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?/(?P<rest>.+)")


class Refused(Exception):
    def __init__(self, code, reason, message):
        super().__init__(message)
        self.status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
        self.status |= {"message": message}


class Cluster:
    """The objects, by plural, namespace and name, and what has happened to them in its order."""

    def __init__(self):
        self.objects = {}
        self.events = []
        self.changed = threading.Condition()
        # Whether Jobs succeed.
        self.jobs_succeed = True

    def put(self, key, kind, new, old):
        for path in IMMUTABLE.get(kind, []) if old else []:
            if at(old, path) != at(new, path):
                message = f"{kind} {key[2]}: {'.'.join(path)}: Invalid value: field is immutable"
                raise Refused(422, "Invalid", message)
        new = json.loads(json.dumps(new))
        kept = old["metadata"] if old else {"uid": str(uuid.uuid4()), "creationTimestamp": "2026-01-31T12:00:00Z"}
        new["metadata"] |= {"uid": kept["uid"], "creationTimestamp": kept["creationTimestamp"]}
        if key[1]:
            new["metadata"]["namespace"] = key[1]
        if kind == "Job":
            new["status"] = job_status(self.jobs_succeed)
        return self.tell("MODIFIED" if old else "ADDED", key, new)

    def tell(self, what, key, new):
        with self.changed:
            new["metadata"]["resourceVersion"] = str(len(self.events) + 1)
            self.events.append((what, key, new))
            if what == "DELETED":
                del self.objects[key]
            else:
                self.objects[key] = new
            self.changed.notify_all()
        return new


def read(body, encoding):
    """A body. Helm keeps its books in Secrets, which it sends as protobuf; what it applies is YAML, and JSON is YAML."""
    if not body:
        return None
    if "protobuf" not in encoding:
        return yaml.safe_load(body)
    if not body.startswith(b"k8s\0"):
        return {}
    unknown = fields(body[4:])
    kind = fields(unknown[1][0])[2][0].decode()
    if kind != "Secret":
        # The options of a deletion.
        return {}
    secret = fields(unknown[2][0])
    metadata = fields(secret[1][0])
    return {
        "apiVersion": "v1",
        "kind": kind,
        "type": secret[3][0].decode(),
        "metadata": {"name": metadata[1][0].decode(), "labels": texts(metadata.get(11, []))},
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in texts(secret[2]).items()},
    }


def texts(entries):
    """A map of protobuf, from text to text."""
    return {fields(entry)[1][0].decode(): fields(entry)[2][0].decode() for entry in entries}


def fields(message):
    """The fields of a message of protobuf by their numbers: numbers, and texts or messages as bytes."""
    found, place = {}, 0

    def number():
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        tag = number()
        value = number()
        if tag & 7 == 2:
            place += value
            value = message[place - value : place]
        found.setdefault(tag >> 3, []).append(value)
    return found


def at(value, path):
    for name in path:
        value = (value or {}).get(name)
    return value


def job_status(succeeds):
    ended = {"status": "True", "lastTransitionTime": "2026-01-31T12:00:01Z"}
    if succeeds:
        return {"succeeded": 1, "conditions": [{"type": kind} | ended for kind in ("SuccessCriteriaMet", "Complete")]}
    return {"failed": 1, "conditions": [{"type": kind} | ended for kind in ("FailureTarget", "Failed")]}


def merge(old, patch):
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster = None

    def log_message(self, *_):
        pass

    def answer(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def serve(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            found = discovery(url.path.rstrip("/"))
            if found is not None:
                return self.answer(200, found)
            return self.resource(url.path, query, body)
        except Refused as refused:
            return self.answer(refused.status["code"], refused.status)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def resource(self, path, query, body):
        matched = PATH.fullmatch(path)
        parts = matched["rest"].split("/") if matched else []
        version = matched and (matched["core"] or matched["group"])
        known = next((row for row in KINDS if parts and (row[0], row[2]) == (version, parts[0])), None)
        if known is None:
            raise Refused(404, "NotFound", f"the server could not find {path}")
        kind, name = known[1], parts[1] if len(parts) > 1 else None
        sent = read(body, self.headers.get("Content-Type") or "")
        if self.command == "POST":
            name = sent["metadata"]["name"]
        key = (known[2], matched["namespace"], name)
        old = self.cluster.objects.get(key)
        if name is None:
            return self.watch(known, key, query) if query.get("watch") else self.list(known, key, query)
        if old is None and not (self.command == "POST" or "apply-patch" in self.headers.get("Content-Type", "")):
            raise Refused(404, "NotFound", f'{known[2]} "{name}" not found')
        if self.command == "GET":
            return self.answer(200, old)
        if self.command == "DELETE":
            return self.answer(200, self.cluster.tell("DELETED", key, old))
        if self.command == "POST" and old is not None:
            raise Refused(409, "AlreadyExists", f'{known[2]} "{name}" already exists')
        if self.command == "PATCH" and "apply-patch" not in self.headers["Content-Type"]:
            sent = merge(old, sent)
        return self.answer(200 if old else 201, self.cluster.put(key, kind, sent, old))

    def selected(self, known, key, query):
        wanted = dict(term.split("=", 1) for term in query.get("labelSelector", "").split(",") if "=" in term)
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")

        def is_selected(found, value):
            labels = value["metadata"].get("labels") or {}
            is_here = found[0] == known[2] and key[1] in (None, found[1]) and name in ("", found[2])
            return is_here and all(labels.get(label) == text for label, text in wanted.items())

        return is_selected

    def list(self, known, key, query):
        is_selected = self.selected(known, key, query)
        items = [value for found, value in list(self.cluster.objects.items()) if is_selected(found, value)]
        version = str(len(self.cluster.events))
        kind = {"kind": f"{known[1]}List", "apiVersion": known[0]}
        self.answer(200, kind | {"metadata": {"resourceVersion": version}, "items": items})

    def watch(self, known, key, query):
        is_selected = self.selected(known, key, query)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        seen, until = int(query.get("resourceVersion") or 0), time.monotonic() + 60
        if query.get("sendInitialEvents") == "true":
            raise Refused(400, "BadRequest", "not here")
        while time.monotonic() < until:
            with self.cluster.changed:
                self.cluster.changed.wait_for(lambda: len(self.cluster.events) > seen, timeout=1)
                new, seen = self.cluster.events[seen:], len(self.cluster.events)
            for what, found, value in new:
                if is_selected(found, value):
                    try:
                        self.wfile.write(json.dumps({"type": what, "object": value}).encode() + b"\n")
                        self.wfile.flush()
                    except OSError:
                        return


def discovery(path):
    groups = sorted({version for version, *_ in KINDS if "/" in version})
    if path == "/version":
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        all_groups = []
        for version in groups:
            group = {"groupVersion": version, "version": version.split("/")[1]}
            all_groups.append({"name": version.split("/")[0], "versions": [group], "preferredVersion": group})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": all_groups}
    if path == "/openapi/v3":
        places = ["api/v1", *(f"apis/{version}" for version in groups)]
        return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}}
    if path.startswith("/openapi/v3/"):
        return openapi(path.removeprefix("/openapi/v3"))
    version = path.removeprefix("/apis/").removeprefix("/api/")
    rows = [row for row in KINDS if row[0] == version and path in (f"/api/{version}", f"/apis/{version}")]
    if not rows:
        return None
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": inside, "kind": kind, "verbs": VERBS}
        for _, kind, plural, inside in rows
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def openapi(place):
    """Says of each kind that the server checks its fields, so that Helm leaves it to the server."""
    version = place.removeprefix("/apis/").removeprefix("/api/")
    paths = {}
    for _, kind, plural, _ in (row for row in KINDS if row[0] == version):
        group, _, number = version.rpartition("/")
        patch = {
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
            "responses": {},
        }
        paths[f"{place}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "t", "version": "1"}, "paths": paths}


def start():
    """Serves on a free port, and gives the cluster and its URL."""
    cluster = Cluster()
    handler = type("ClusterHandler", (Handler,), {"cluster": cluster})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return cluster, f"http://127.0.0.1:{server.server_address[1]}"
