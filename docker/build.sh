#!/usr/bin/env bash
# Builds images, tags them with version and revision, and as `latest`: build.sh [IMAGE]..., all but worker-cuda by default.
#
# Bases that are not there are pulled; where that fails, stand-ins are built for them. STANDIN=1 pulls nothing.
# RUST_IMAGE, RUNTIME_IMAGE, NATS_IMAGE and CUDA_IMAGE name other bases, by digest for example. IMAGE_PREFIX, such as
# registry.example/team/, comes before each name.
set -eu
cd "$(dirname "$0")/.."
if [ $# = 0 ]; then set -- producer worker logger nats; fi

# The base that a line `NAME_IMAGE=...` of a Dockerfile asks for.
base() {
    local variable=${1%%=*} kind name
    kind=${variable%_IMAGE} name=${!variable:-${1#*=}}
    if ! docker image inspect "$name" >/dev/null 2>&1; then
        if [ "${STANDIN:-}" = 1 ] || ! docker pull -q "$name"; then
            echo "building a stand-in for $name" >&2
            docker/standin.sh "${kind,,}" "$name" >&2
        fi
    fi
    bases+=(--build-arg "$variable=$name")
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
revision=$(git rev-parse HEAD)
tag=$version-$(git rev-parse --short=12 HEAD)
# What is not committed cannot be found again by its tag.
if [ -n "$(git status --porcelain)" ]; then
    tag=$tag-dirty revision=$revision-dirty
fi
created=$(TZ=UTC git show -s --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ HEAD)
label=org.opencontainers.image

for image in "$@"; do
    file=docker/$image.Dockerfile name=${IMAGE_PREFIX:-}inferq-$image bases=()
    mapfile -t asked < <(sed -n 's/^ARG \([A-Z]*_IMAGE=.*\)/\1/p' "$file")
    for argument in "${asked[@]}"; do base "$argument"; done
    DOCKER_BUILDKIT=1 docker build --progress=plain --file "$file" "${bases[@]}" \
        --label "$label.version=$version" --label "$label.revision=$revision" --label "$label.created=$created" \
        --label "$label.vendor=inferq" --tag "$name:$tag" --tag "$name:latest" .
    echo "built $name:$tag, $(($(docker image inspect -f '{{.Size}}' "$name:$tag") / 1000000)) MB"
done
