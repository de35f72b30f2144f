#!/bin/sh
# Runs in the build stage of each image: compiles all programs and writes their bills of materials to /out. Arguments go
# to cargo.
#
# The cache of /build is no part of the image, so what is to stay is copied out of it. It may come from another tree, an
# older one or a newer one, and cargo tells by times alone what has changed: so our own sources are always new. Symbols
# are stripped: a panic tells its file and line without them.
set -eu
find . -type f -exec touch {} +
CARGO_PROFILE_RELEASE_STRIP=symbols cargo auditable build --locked --release -p producer -p workers --bins "$@"
mkdir -p /out/bin /out/sbom /out/data /out/inferq-accounts
mkdir -m 700 /out/inferq-accounts/keys
for program in inferq inferq-worker inferq-logger; do
    cp "/build/release/$program" /out/bin/
    auditable2cdx "/out/bin/$program" >"/out/sbom/$program.cdx.json"
done
