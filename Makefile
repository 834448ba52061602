# Everything a person or a CI run needs. `make help` lists the targets; each builds what it uses.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup build demo test verify fix bench soak clean

in_env := . deploy/env.sh;
kafka := deploy/kafka/kafka.sh
programs := cargo build --workspace --bins --examples

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## install missing packages; build RocksDB and fetch Kafka once per machine
	@$(in_env)
	deploy/install-packages.sh build
	deploy/rocksdb/build.sh > /dev/null
	$(kafka) fetch

build: setup ## build every program and example
	@$(in_env)
	$(programs)

demo: build ## a cluster of three nodes on a real Kafka, a stateful job, a killed container and a dead node
	@$(in_env)
	"$$CARGO_TARGET_DIR/debug/demo" --flights "$$(deploy/flights.sh)" $(DEMO_FLAGS)

test: build ## all tests, with real brokers, processes, cgroups and a browser
	@$(in_env)
	deploy/install-packages.sh browser
	deploy/install-packages.sh network
	deploy/vm/kernel.sh > /dev/null
	$(kafka) run --brokers 3 --port 0 -- cargo test --workspace

verify: setup ## formatting, lints, structure, licences, scripts; changes nothing
	@$(in_env)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test -p tests --test tidy
	deploy/cargo-deny.sh --offline check licenses bans sources
	for script in .ci/run $$(git ls-files '*.sh'); do bash -n "$$script"; done

fix: ## format, and apply what clippy can
	@$(in_env)
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

bench: build ## the measured figures, beside those of the peers; prints tables, appends to target/bench.jsonl
	@$(in_env)
	"$$CARGO_TARGET_DIR/debug/bench"
	cargo test --quiet --workspace --test cost

soak: build ## the tests that profit from repetition, for SOAK_MINUTES (default 30)
	@$(in_env)
	deploy/install-packages.sh network
	deploy/vm/kernel.sh > /dev/null
	deploy/vm/systemd.sh > /dev/null
	export SAMZA_SOAK_MINUTES=$${SOAK_MINUTES:-30}
	$(kafka) run --brokers 3 --port 0 -- tests/soak.sh

clean: ## remove what builds and demos left; the caches of RocksDB and Kafka stay
	@$(in_env)
	cargo clean
	rm -rf .demo target
