#!/usr/bin/env bash
# Lays out NVIDIA's compiler and libraries from PyPI as its own images do: docker/cuda/toolkit.sh FOLDER
#
# FOLDER becomes the value of CUDA_HOME. No GPU and no driver is needed.
set -eu
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$folder")"
work=$(mktemp -d -p "$(dirname "$folder")")
trap 'rm -rf "$work"' EXIT

pip download -q --no-deps --require-hashes --only-binary=:all: -d "$work/wheels" -r "$here/requirements.txt"
for wheel in "$work"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/wheel"
    rm "$wheel"
done
cuda=$work/wheel/nvidia/cu13
mv "$cuda/lib" "$cuda/lib64"
find "$cuda/bin" "$cuda/nvvm/bin" -type f -exec chmod 755 {} +
for library in "$cuda"/lib64/*.so.*; do ln -sf "${library##*/}" "${library%.so.*}.so"; done

# The driver's part, of which a linker needs no more than the names.
mkdir -p "$cuda/lib64/stubs"
grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$cuda/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' |
    gcc -shared -x c -w -Wl,-soname,libcuda.so.1 -o "$cuda/lib64/stubs/libcuda.so" -

rm -rf "$folder"
mv "$cuda" "$folder"
