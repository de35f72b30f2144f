# The worker for CPUs, which serves one model: `docker build -f docker/worker.Dockerfile .`
#
# No `# syntax` line: the frontend of any BuildKit will do, and fetching another one is one more thing to trust.
ARG RUST_IMAGE=rust:1.95.0-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# All programs are built here, by the same words in each Dockerfile of a program, so Docker does it once for all of them.
# cargo-auditable writes the list of crates into each program, where scanners find it; auditable2cdx writes it out as a
# bill of materials in the form of CycloneDX. Unoptimised, since building them takes far longer than running them.
FROM ${RUST_IMAGE} AS tools
RUN --mount=type=cache,id=inferq-registry,target=/usr/local/cargo/registry,sharing=locked \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
    cargo install --locked --root /tools cargo-auditable@0.7.7 auditable2cdx@0.1.0

FROM ${RUST_IMAGE} AS build
ENV PATH=/tools/bin:${PATH} CARGO_TARGET_DIR=/build
COPY --from=tools /tools /tools
WORKDIR /src
COPY . .
RUN --mount=type=cache,id=inferq-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=inferq-build,target=/build,sharing=locked \
    docker/compile.sh

# 65532 is the user `nonroot` of distroless, by number, so that Kubernetes can check it.
FROM ${RUNTIME_IMAGE}
LABEL org.opencontainers.image.title=inferq-worker \
      org.opencontainers.image.description="inferq: a worker that serves one model on the CPU" \
      org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /out/bin/inferq-worker /usr/local/bin/
COPY --from=build /out/sbom/inferq-worker.cdx.json /usr/share/sbom/
COPY --from=build --chown=65532:65532 /out/data /var/cache/inferq
USER 65532:65532
WORKDIR /
ENV INFERQ_ADMIN=0.0.0.0:9464 INFERQ_CACHE_DIR=/var/cache/inferq INFERQ_REGISTRY=/etc/inferq/models.toml
EXPOSE 9464
# A model may take minutes to be fetched and loaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 CMD ["/usr/local/bin/inferq-worker", "health"]
ENTRYPOINT ["/usr/local/bin/inferq-worker"]
