# The published NATS server, with a folder for its data that a user without root may write to:
# `docker build -f docker/nats.Dockerfile .` Not for clusters: use the official chart.
ARG NATS_IMAGE=nats:2.15.1-alpine

FROM ${NATS_IMAGE}
LABEL org.opencontainers.image.title=inferq-nats \
      org.opencontainers.image.description="NATS server for the Compose file of inferq" \
      org.opencontainers.image.licenses=Apache-2.0
RUN mkdir /data && chown 65532:65532 /data
USER 65532:65532
EXPOSE 4222 8222
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["wget", "-q", "-O", "-", "http://127.0.0.1:8222/healthz"]
CMD ["nats-server", "--config", "/etc/nats/nats.conf"]
