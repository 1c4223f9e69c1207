# quikflow with the clients of all brokers and stores, as an image without compilers and without root.
#   docker build -t quikflow:0.1.0 .

FROM rust:1.95.0-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
COPY topics topics
COPY gateway gateway
COPY ingest ingest
COPY pipelines pipelines
COPY sinks sinks
COPY query-api query-api
COPY src src
COPY tests tests
# The caches stay on the builder; the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --locked --release --features full --bin quikflow \
    && strip -o /quikflow target/release/quikflow

FROM debian:12.11-slim
# What librdkafka links to, and the authorities that TLS trusts.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/quikflow
COPY --from=build /quikflow /usr/local/bin/quikflow
COPY topologies.toml /etc/quikflow/topologies.toml
ENV QUIKFLOW_TOPOLOGIES=/etc/quikflow/topologies.toml \
    QUIKFLOW_DATA=/var/lib/quikflow \
    QUIKFLOW_INGEST_ADDR=0.0.0.0:8080 \
    QUIKFLOW_QUERY_ADDR=0.0.0.0:8090 \
    QUIKFLOW_HEALTH_ADDR=0.0.0.0:8070
USER 10001:10001
WORKDIR /var/lib/quikflow
EXPOSE 8080 8090 8070
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["quikflow", "health"]
ENTRYPOINT ["quikflow"]
CMD ["run"]
