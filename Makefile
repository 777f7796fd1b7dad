# `make demo` and `make test` are all that a newcomer needs: each does its own set-up.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
RESULTS := target/results
# One VM pair at a time: two would measure each other, and 2 cores carry no more.
E2E := --test-threads=1
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 3600
# What the programs are built with, besides.
FEATURES ?=
# Words for unmoor-bench; tests/src/bin/unmoor-bench/main.rs tells which.
BENCH ?=

.PHONY: help tools setup setup-versions setup-debian build demo test test-unit test-e2e test-slow test-versions test-newcomer test-faults test-defects soak bench lint fuzz man clean-lab

help: ## What there is to make
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 16

tools:
	lab/tools.sh

setup: ## Packages; QEMU, libvirt and kernels, the usual and the newest; the guest's image
	lab/setup.sh

setup-versions: setup ## Further versions of QEMU, libvirt and kernels, for the slow tests
	lab/versions.sh

setup-debian: setup ## The guests of Debian 12 and 13, for the slow tests
	lab/debian.sh 12
	lab/debian.sh 13

build: tools ## The programs, optimised, into target/dist; FEATURES=libvirt for unmoor migrate
	$(CARGO) build --profile dist --locked -p unmoor --features "$(FEATURES)"

demo: setup ## A VM that QEMU alone cannot move, moved (4 min after the set-up)
	$(CARGO) build --release --locked -p unmoor -p lab -p unmoor-tests
	target/release/unmoor-demo

test: test-unit test-e2e ## Every test but the slow ones

test-unit: tools ## Unit, property and simulation tests
	$(CARGO) test --locked --workspace --exclude unmoor-tests --exclude lab

test-e2e: setup ## Tests on real QEMU, real guests, two hosts
	$(CARGO) build --release --locked -p unmoor --features unmoor/libvirt -p lab
	rm -rf $(RESULTS)/test-e2e.d
	$(CARGO) test --release --locked -p lab -p unmoor-tests -- $(E2E)
	target/release/lab-results test-e2e

test-slow: setup-versions setup-debian ## The whole matrices, and a minute of fuzzing each
	$(CARGO) build --release --locked -p unmoor --features unmoor/libvirt -p lab
	rm -rf $(RESULTS)/test-slow.d
	export UNMOOR_OLD_RELEASE=$$(tests/releases.sh --build); \
	UNMOOR_RECORD=test-slow $(CARGO) test --release --locked -p lab -p unmoor-tests -- $(E2E) --include-ignored
	UNMOOR_SIMULATIONS=100000 $(CARGO) test --release --locked -p migrate --test simulation
	UNMOOR_SIMULATIONS=50000 $(CARGO) test --release --locked -p migrate --test steered
	$(MAKE) fuzz
	$(MAKE) test-newcomer
	target/release/lab-results test-slow

test-versions: setup-versions ## Every kernel, QEMU and libvirt of the lab, moved (half an hour)
	$(CARGO) build --release --locked -p unmoor --features unmoor/libvirt -p lab
	rm -rf $(RESULTS)/test-versions.d
	UNMOOR_RECORD=test-versions $(CARGO) test --release --locked -p unmoor-tests --test versions -- $(E2E) --ignored
	UNMOOR_RECORD=test-versions $(CARGO) test --release --locked -p lab --test versions -- $(E2E) --ignored
	target/release/lab-results test-versions

test-newcomer: ## A fresh Debian 13: the README's first command, lint and some tests (an hour)
	tests/newcomer.sh

test-faults: setup ## Whatever can break, at every moment, under every protocol (half an hour)
	$(CARGO) build --release --locked -p unmoor -p lab -p unmoor-tests
	rm -rf $(RESULTS)/faults.d
	target/release/unmoor-faults --part 1/2 & first=$$!; second=0; \
	target/release/unmoor-faults --part 2/2 || second=$$?; \
	wait $$first && [ $$second = 0 ]
	target/release/unmoor-faults --render

soak: setup ## One VM moves back and forth for an hour; SOAK_SECONDS=600 for less
	$(CARGO) build --release --locked -p unmoor -p lab -p unmoor-tests
	target/release/unmoor-soak $(SOAK_SECONDS)

test-defects: setup ## Whether the tests can fail: two defects, each to be found twice (ten minutes)
	tests/defects/run.sh

bench: setup ## Migrations beside stock QEMU's in every mode (an hour; BENCH='--only W1' for a part)
	$(CARGO) build --release --locked -p unmoor -p lab -p unmoor-tests
	target/release/unmoor-bench $(BENCH)
	target/release/unmoor-bench-agent
	target/release/unmoor-bench-audit

fuzz: tools ## Coverage-guided fuzzing of every parser, FUZZ_SECONDS each
	fuzz/run.sh $(FUZZ_SECONDS)

lint: tools ## Format, clippy and documentation, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p unmoor -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items

man: build ## Manual pages and completions, into target/man and target/completions
	mkdir -p target/man target/completions
	target/dist/unmoor man target/man
	target/dist/unmoor completions bash > target/completions/unmoor.bash
	target/dist/unmoor completions zsh > target/completions/_unmoor
	target/dist/unmoor completions fish > target/completions/unmoor.fish

clean-lab: ## Removes what a killed run of the lab may have left behind
	$(CARGO) run --release --locked -q -p lab --bin lab-clean
