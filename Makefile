# Everything is built with one profile, so that the tests run the programs that ship and nothing is compiled twice.
SHELL := /bin/bash
BIN := $(or $(CARGO_TARGET_DIR),target)/release
CARGO := cargo --locked
DENY_VERSION := 0.20.2
DENY := $(abspath $(BIN))/../tools/bin/cargo-deny

.PHONY: help build demo test test-clients test-dashboard test-api test-arm64 test-emulated check check-deploy check-cuda bench bench-decoder bench-encoder bench-batch bench-gateway bench-speech chaos scale-test fuzz images compose-test schemas fmt

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 15

build: ## build the programs
	$(CARGO) build --release --workspace

demo: build ## run a small batch file on real models, start to end
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/inferq up --registry workers/models.toml --data "$(BIN)/demo" --port 0 -- tests/demo/run.sh

test: check build ## run every check and every test
	$(CARGO) test --release --workspace --lib --bins --examples --test '*'
	$(CARGO) test --release --workspace --doc
	$(MAKE) test-emulated
	FUZZ_SECONDS=10 tests/fuzz/run.sh

check: $(DENY) ## format, lints, documentation, licenses
	$(CARGO) fmt --check
	cd tests/fuzz && $(CARGO) fmt --check
	cd tests/bench/encoder/candle && $(CARGO) fmt --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps
	$(DENY) --locked check licenses bans sources
	$(DENY) --locked --manifest-path tests/fuzz/Cargo.toml check licenses bans sources

# Unoptimised, since building it takes far longer than running it.
$(DENY):
	CARGO_TARGET_DIR="$(abspath $(BIN))/../tools/build" CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
	CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
	cargo install cargo-deny@$(DENY_VERSION) --locked --no-default-features --root "$(abspath $(BIN))/../tools"
	rm -rf "$(abspath $(BIN))/../tools/build"

check-deploy: ## check the Helm chart, the Dockerfiles and the Compose file, without a cluster or a daemon
	DEPLOY_TOOLS="$(abspath $(BIN))/../tools/deploy" k8s/check.sh
	docker/check.sh

test-arm64: ## run the kernels' tests as arm64 runs them, in QEMU; installs Debian's package where it is missing
	tests/arm64.sh

# What is tested computes by them alone, so it is compiled once more; then the programs are put back.
test-emulated: ## run decoders by their kernels for GPUs, emulated on the processor; part of `make test`
	$(CARGO) test --release --workspace --features workers/emulated --test emulated --test decoders --test speech && \
	$(CARGO) test --release --workspace --features workers/emulated --lib -- engine::decoder; \
	status=$$?; $(CARGO) build --release --workspace && exit $$status

# Into a folder of its own, since all crates that know of the feature are compiled anew. CUDA_COMPUTE_CAP=90 is for H100.
check-cuda: export CUDA_HOME := $(abspath $(BIN))/../tools/cuda
check-cuda: export CUDA_COMPUTE_CAP ?= 80
check-cuda: export LIBRARY_PATH := $(CUDA_HOME)/lib64:$(CUDA_HOME)/lib64/stubs
check-cuda: ## compile what runs on NVIDIA GPUs, and its tests, without a GPU; some 15 minutes
	test -x "$(CUDA_HOME)/bin/nvcc" || docker/cuda/toolkit.sh "$(CUDA_HOME)"
	PATH="$(CUDA_HOME)/bin:$$PATH" CARGO_TARGET_DIR="$(abspath $(BIN))/../cuda" \
	RUSTFLAGS="-L native=$(CUDA_HOME)/lib64 -L native=$(CUDA_HOME)/lib64/stubs" \
	$(CARGO) clippy --release -p workers --all-targets --features cuda -- -D warnings
	PATH="$(CUDA_HOME)/bin:$$PATH" CARGO_TARGET_DIR="$(abspath $(BIN))/../cuda" \
	RUSTFLAGS="-L native=$(CUDA_HOME)/lib64 -L native=$(CUDA_HOME)/lib64/stubs" \
	$(CARGO) test --release -p workers --features cuda --no-run

# BENCH_ARGS: names of cases, all of them unless given: echo, cache, fairness, models.
bench: build ## measure the queue and the models beside bare JetStream
	$(CARGO) bench -p tests --bench queue -- $(BENCH_ARGS)

# BENCH_ARGS: names of parts, all of them unless given: throughput, latency, memory, accuracy, queue; and --rounds N.
bench-encoder: build ## measure the encoder beside the engines people would take instead
	$(CARGO) bench -p tests --bench encoder -- $(BENCH_ARGS)

# BENCH_ARGS: names of parts, all of them unless given: rates, quality, queue, latency; and --rounds N.
bench-decoder: build ## measure the decoder beside llama.cpp
	$(CARGO) bench -p tests --bench decoder -- $(BENCH_ARGS)

test-clients: build ## run OpenAI's own clients against the gateway; part of `make test`
	$(CARGO) test --release -p tests --test inferq -- gateway::clients

test-dashboard: build ## open the dashboard in headless Chromium and use it; installs Debian's package where it is missing
	tests/dashboard/run.sh

# EXAMPLES: requests for each operation, 30 unless given.
test-api: build ## have schemathesis ask the gateway what its OpenAPI document allows and what it does not
	tests/api/run.sh

bench-gateway: build ## measure what the gateway and the queue add to an engine that takes no time
	tests/bench/gateway/run.sh

# ROWS: a million unless given.
bench-batch: build ## run a batch of a million lines through a gateway, and measure its memory
	tests/bench/gateway/batch.sh

# ROUNDS and FILES: 5 and 64 unless given. KINDS: types of numbers, "f32 int8" unless given.
bench-speech: build ## measure the speech engine beside faster-whisper and CTranslate2
	tests/bench/speech/run.sh

# CHAOS_ARGS: names of scenarios, --seed, --random; `make chaos CHAOS_ARGS=--help` shows them all.
chaos: build ## break everything on purpose, long, and account for every job
	$(CARGO) test --release -p tests --test chaos -- --long $(CHAOS_ARGS)

scale-test: build ## scale workers by the rendered ScaledObject and a real server's monitoring, and show the numbers
	$(CARGO) test --release -p tests --test inferq -- --nocapture --test-threads 1 scaling

# FUZZ_SECONDS: for each target, 60 unless given; `tests/fuzz/run.sh grow` also keeps what it found in the corpus.
fuzz: ## feed every decoder with inputs that reach ever more of it
	tests/fuzz/run.sh

# IMAGE_PREFIX, RUST_IMAGE and more: docker/build.sh says what it reads.
images: ## build every image
	docker/build.sh

compose-test: ## build every image, run the Compose stack and break it
	docker/test.sh

schemas: ## write schemas/json anew from the types
	$(CARGO) run --release -p schemas --example generate

fmt: ## format the code
	cargo fmt
	cd tests/fuzz && cargo fmt
	cd tests/bench/encoder/candle && cargo fmt
