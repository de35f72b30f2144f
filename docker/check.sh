#!/usr/bin/env bash
# Lints the Dockerfile and the scripts, and has Compose read its file. It needs neither a daemon nor an image.
set -eu
cd "$(dirname "$0")/.."
. docker/engine.sh
need_tools
"$tools/bin/hadolint" docker/Dockerfile
"$tools/bin/shellcheck" docker/*.sh
"$tools/bin/docker-compose" --file docker/compose.yaml --profile demo config --quiet
echo "docker: Dockerfile, scripts and compose.yaml are in order"
