#!/usr/bin/env bash
# Runs the kernels' tests as arm64 runs them, in QEMU, on processors with and without products of bytes.
# QEMU is Debian's package; it is installed where there is none, which takes root. The compiler's part is rustup's.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-musl
command -v qemu-aarch64-static >/dev/null ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends qemu-user-static; }
rustup target add "$target"
# What is linked is all Rust's, so Rust's own linker will do.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld
# Of what it emulates: NEON alone, products of signed bytes, all there is.
for cpu in cortex-a72 cortex-a76 max; do
  echo "on $cpu:"
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER="qemu-aarch64-static -cpu $cpu" \
    cargo test --locked --release --package kernels --target "$target" "$@"
done
