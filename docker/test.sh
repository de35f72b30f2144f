#!/usr/bin/env bash
# Builds the images, runs the stack of compose.yaml and breaks it on purpose: a line for each check, and an exit code.
# It has containers, volumes and networks of its own, and leaves none of them. KEEP=1 leaves them, to look at.
set -eu
cd "$(dirname "$0")/.."
. docker/engine.sh

export COMPOSE_PROJECT_NAME=inferq-test COMPOSE_FILE=docker/compose.yaml COMPOSE_PROFILES=demo
# Free ports, so that a stack that runs already is not in the way.
export NATS_PORT=0 GATEWAY_PORT=0 PROMETHEUS_PORT=0 GRAFANA_PORT=0
# The tag that the stack is rolled back to.
export PREVIOUS=test-previous
work=$(mktemp -d)
# The user of the containers reads what is put there.
chmod 755 "$work"

down() {
    # Those of `compose run` first: they hold volumes and networks.
    docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" | xargs -r docker rm --force
    "${compose[@]}" down --volumes --remove-orphans
    docker images --format '{{.Repository}}:{{.Tag}}' --filter "reference=*:$PREVIOUS" | xargs -r docker rmi
}

clean() {
    if [ -z "${KEEP:-}" ]; then
        if [ -n "${compose:-}" ]; then down >/dev/null 2>&1 || true; fi
        leave_docker
    fi
    rm -rf "$work"
}
trap clean EXIT

need_docker
need_compose
down >/dev/null 2>&1
docker/build.sh >"$work/build.log" 2>&1 || { tail -50 "$work/build.log" >&2; exit 1; }
grep '^built' "$work/build.log"
prometheus=$("${compose[@]}" config --images prometheus)
if ! docker image inspect "$prometheus" >/dev/null 2>&1; then
    if [ "${STANDIN:-}" = 1 ] || ! docker pull -q "$prometheus"; then docker/standin.sh prometheus "$prometheus"; fi
fi
COMPOSE="${compose[*]}" WORK=$work PYTHONDONTWRITEBYTECODE=1 python3 docker/test/main.py
