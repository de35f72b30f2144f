#!/usr/bin/env bash
# Lints the Dockerfiles and the scripts, and has Compose read its file. It needs neither a daemon nor an image.
set -eu
cd "$(dirname "$0")/.."
. docker/engine.sh
need_tools
"$tools/bin/hadolint" docker/*.Dockerfile
# Docker builds the programs once for all images only as long as every word of it is the same.
build() { sed -n '/^# All programs are built here/,/compile\.sh$/p' "docker/$1.Dockerfile"; }
for image in producer logger; do diff <(build worker) <(build "$image"); done
"$tools/bin/shellcheck" docker/*.sh
"$tools/bin/docker-compose" --file docker/compose.yaml --profile demo config --quiet
echo "docker: Dockerfiles, scripts and compose.yaml are in order"
