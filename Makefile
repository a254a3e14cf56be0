# The two commands of the README are `make demo` and `make test`; each sets up what it needs and says what is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

.PHONY: help demo test crash test-crash check bench fmt lint doc

help:
	@echo "make demo      a local chain, a pretend model, the gate, and two paid calls (ONCE=1: then stop)"
	@echo "make test      everything that must hold: format, lints, all tests with the real clients, docs, rule sets"
	@echo "make crash     the gate is killed 200 times under paying load (ROUNDS=n)"
	@echo "make test-crash  the gate is killed 50 times and Redis 20 times under streaming load (ROUNDS=n)"
	@echo "make check     the part of it that needs no test bed: format, lints, docs, rule sets"
	@echo "make bench     costs side by side, in ratios"
	@echo "make fmt       format the Rust code"

demo:
	@testbed/demo

test:
	@.ci/run

crash:
	@testbed/setup
	@. .ci/env
	PONTAGE_CRASH_ROUNDS="$${ROUNDS:-200}" cargo test --test crash -- --nocapture

test-crash:
	@testbed/setup
	@. .ci/env
	PONTAGE_CRASH_ROUNDS="$${ROUNDS:-50}" cargo test --test session_crash -- --nocapture

fmt:
	@. .ci/env
	cargo fmt

lint:
	@. .ci/env
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

doc:
	@. .ci/env
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

check: lint doc
	@. .ci/env
	.ci/rules

bench:
	@. .ci/env
	cargo bench
