# LamaGrid. `make demo` from a fresh clone needs CPython 3.11, Rust, gcc, g++, cmake, nasm and make; see `make deps` for the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PORT ?= 8080
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.stamp
WITH_VENV := VIRTUAL_ENV="$(CURDIR)/.venv" PATH="$(BIN):$$PATH"

.PHONY: help deps venv build demo run test quick check deny parity bench gpu-check chaos upgrade measure clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{ printf "  make %-9s %s\n", $$1, $$2 }'

deps: ## install the system packages (as root), or name those that are missing
	@tools/deps.sh

venv: $(STAMP) ## make .venv: Lama Cleaner 1.2.5 with its pins, and the tools

$(STAMP): constraints/hashes.txt tools/venv.sh
	@tools/venv.sh
	@touch $@

build: $(STAMP) ## compile everything and install the Python package into .venv
	@tools/space.sh 4 . "the build"
	@$(BIN)/python tools/libraries.py
	@echo "build: 1/2 programs and libraries (the first time some minutes, most of them libtorch's bindings)"
	@$(WITH_VENV) cargo build --release --locked
	@echo "build: 2/2 the Python package"
	@$(WITH_VENV) maturin develop --release --locked

demo: build ## run the whole stack once on a real photo: target/demo.png
	@$(BIN)/python -m lamagrid.demo

run: build ## serve the page on PORT (8080) with the demo model in place of lama
	@echo "run: the demo model, which has no trained weights, stands in for lama (--grid-demo-model)"
	@echo "run: http://127.0.0.1:$(PORT)   (Ctrl-C ends it)"
	@exec $(BIN)/lama-cleaner-grid --model lama --grid-demo-model --port $(PORT)

test: build ## all suites, cheapest first, with each one's share of the time; SUITE=seam ARGS="-k proxy" runs some of one
	@$(BIN)/python tests/suites.py $(SUITE) $(if $(ARGS),-- $(ARGS))

quick: check ## formatting, lints, types and unit tests
	@$(BIN)/python tests/suites.py rules rust

check: $(STAMP) ## formatting, lints, types and links in the documentation
	@$(WITH_VENV) cargo fmt --all --check
	@cargo fmt --manifest-path fuzz/Cargo.toml --check
	@$(WITH_VENV) cargo clippy --release --locked --workspace --all-targets -- -D warnings
	@$(WITH_VENV) RUSTDOCFLAGS="-D warnings" cargo doc --quiet --release --locked --workspace --no-deps --document-private-items
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict python/lamagrid

deny: ## licences, bans and sources of all crates, with cargo-deny (make test checks the same without it)
	@command -v cargo-deny >/dev/null || { echo "deny: cargo-deny is missing: cargo install cargo-deny --locked"; exit 1; }
	@cargo deny --offline --locked check licenses bans sources

parity: build ## stock against the grid: 50,000 calls of its functions, 10,000 JPEG files, and 2,000 requests
	@$(WITH_VENV) $(BIN)/python -m pytest -q tests/pure --cases 50000
	@$(BIN)/python -m pytest -q tests/seam/test_grid_pixels.py
	@$(BIN)/python -m pytest -q tests/parity --requests 2000

bench: build ## stock and grid side by side, what tasks, the gate and a thousand nodes cost, a hundred browsers: tables, target/bench*.json
	@$(WITH_VENV) $(BIN)/python bench/run.py
	@$(WITH_VENV) cargo build --release --locked --examples
	@$(WITH_VENV) $(BIN)/python bench/tasks.py
	@$(WITH_VENV) $(BIN)/python bench/gate.py
	@$(WITH_VENV) $(BIN)/python bench/scale.py
	@$(WITH_VENV) $(BIN)/python bench/web_load.py

gpu-check: build ## with an NVIDIA GPU: detection, parity and speed there, into docs/gpu.md
	@$(BIN)/python bench/gpu_check.py

chaos: build ## kill, freeze, cancel, drain, lose power, hostile peers, cut networks and fuzzing (needs root, nightly Rust and cargo-fuzz) for an hour; SABOTAGE=drop-outcome, ...: does the checker see it?
	@$(WITH_VENV) $(BIN)/python tests/chaos.py $(if $(SABOTAGE),--sabotage $(SABOTAGE))

upgrade: build ## mix this version with the protocol's minor version before it, under load (builds that, too; needs git's history)
	@$(WITH_VENV) $(BIN)/python -m pytest -q tests/upgrade

measure: $(STAMP) ## how the code is built: circles, sizes, places that replace upstream's code; PROSE=1 lists unclear wording
	@cd tests && $(BIN)/python -m rules.measure $(if $(PROSE),--prose)

clean: ## remove what was built; .venv stays
	@cargo clean
	@rm -rf .mypy_cache .ruff_cache .pytest_cache dist
	@find python tests bench lama_cleaner_patch -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
