#!/usr/bin/env bash
# Builds every image, tags it with version and revision, and as `latest`.
#
# Bases that are not there are pulled; where that fails, stand-ins are built for them. STANDIN=1 pulls nothing.
# RUST_IMAGE, RUNTIME_IMAGE and NATS_IMAGE name other bases, by digest for example. IMAGE_PREFIX, such as
# registry.example/team/, comes before each name.
set -eu
cd "$(dirname "$0")/.."
images="producer worker logger nats"

base() {
    local variable=$1 kind=$2 name
    name=${!variable:-$(sed -n "s/^ARG $variable=//p" docker/Dockerfile)}
    if ! docker image inspect "$name" >/dev/null 2>&1; then
        if [ "${STANDIN:-}" = 1 ] || ! docker pull -q "$name"; then
            echo "building a stand-in for $name" >&2
            docker/standin.sh "$kind" "$name" >&2
        fi
    fi
    bases+=(--build-arg "$variable=$name")
}

bases=()
base RUST_IMAGE rust
base RUNTIME_IMAGE distroless
base NATS_IMAGE nats

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
revision=$(git rev-parse HEAD)
tag=$version-$(git rev-parse --short=12 HEAD)
# What is not committed cannot be found again by its tag.
if [ -n "$(git status --porcelain)" ]; then
    tag=$tag-dirty revision=$revision-dirty
fi
created=$(TZ=UTC git show -s --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ HEAD)

for image in $images; do
    name=${IMAGE_PREFIX:-}inferq-$image
    DOCKER_BUILDKIT=1 docker build --progress=plain --file docker/Dockerfile --target "$image" "${bases[@]}" \
        --build-arg VERSION="$version" --build-arg REVISION="$revision" --build-arg CREATED="$created" \
        --tag "$name:$tag" --tag "$name:latest" .
    echo "built $name:$tag, $(($(docker image inspect -f '{{.Size}}' "$name:$tag") / 1000000)) MB"
done
