# The worker for NVIDIA GPUs, which serves one model: `docker build -f docker/worker-cuda.Dockerfile .`
#
# No `# syntax` line: the frontend of any BuildKit will do, and fetching another one is one more thing to trust.
ARG RUST_IMAGE=rust:1.95.0-bookworm
# Ubuntu 22.04, whose glibc is older than that of the runtime: what is linked to a newer one would not start there.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu22.04
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS rust

FROM ${CUDA_IMAGE} AS compiler
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:${PATH}
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo

# As in the other Dockerfiles, but with this C library.
FROM compiler AS tools
RUN --mount=type=cache,id=inferq-registry,target=/usr/local/cargo/registry,sharing=locked \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
    cargo install --locked --root /tools cargo-auditable@0.7.7 auditable2cdx@0.1.0

FROM compiler AS build
# The oldest GPUs that it runs on: 80 are A100, 86 RTX 30, 89 L4 and L40, 90 H100. Newer ones run the same code.
ARG CUDA_COMPUTE_CAP=80
ENV PATH=/tools/bin:${PATH} CARGO_TARGET_DIR=/build
COPY --from=tools /tools /tools
WORKDIR /src
COPY . .
RUN --mount=type=cache,id=inferq-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=inferq-build-cuda,target=/build,sharing=locked \
    docker/compile.sh --features workers/cuda
# What the program needs of CUDA; the driver itself comes from the machine.
WORKDIR /out/cuda
RUN for library in libcublas.so.13 libcublasLt.so.13 libcudart.so.13 libcurand.so.10; do \
        cp -L "/usr/local/cuda/lib64/${library}" . || exit 1; \
    done

# 65532 is the user `nonroot` of distroless, by number, so that Kubernetes can check it.
FROM ${RUNTIME_IMAGE}
LABEL org.opencontainers.image.title=inferq-worker-cuda \
      org.opencontainers.image.description="inferq: a worker that serves one model on an NVIDIA GPU" \
      org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /out/cuda /usr/local/cuda/lib64
COPY --from=build /out/bin/inferq-worker /usr/local/bin/
COPY --from=build /out/sbom/inferq-worker.cdx.json /usr/share/sbom/
COPY --from=build --chown=65532:65532 /out/data /var/cache/inferq
USER 65532:65532
WORKDIR /
# Beside the libraries, where some machines put the driver.
ENV LD_LIBRARY_PATH=/usr/local/cuda/lib64:/usr/local/nvidia/lib64 NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV INFERQ_ADMIN=0.0.0.0:9464 INFERQ_CACHE_DIR=/var/cache/inferq INFERQ_REGISTRY=/etc/inferq/models.toml
EXPOSE 9464
# A model may take minutes to be fetched and loaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 CMD ["/usr/local/bin/inferq-worker", "health"]
ENTRYPOINT ["/usr/local/bin/inferq-worker"]
