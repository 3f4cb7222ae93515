# `make demo`, `make test` and `make lint` install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# What is checked: the files that git tracks, not what a run or an editor left in the folder.
TRACKED := git ls-files -z

.PHONY: install demo test test-all test-rest soak lint docs clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11 or cannot run: use make PYTHON=/path/to/python3.11 (or newer)"; exit 2; }
	@echo "Installing into .venv (on Linux with a CUDA build of torch, Ray and MLflow: about 3 GB to download)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable ".[dev]"
	@touch $@

demo: install
	$(BIN)/polyvit synth demo-data
	$(BIN)/polyvit cotrain demo

# Our own files are compiled once, and not again by each of the hundreds of processes that tests start. Tests run in one
# process more than there are cores, at most four; those that start Ray share one process and one cluster.
PYTEST = $(BIN)/python -m compileall -q polyvit pipelines && $(BIN)/python -m pytest
PARALLEL := -n logical

test: install
	$(PYTEST) $(PARALLEL)

test-all: install
	$(PYTEST) $(PARALLEL) -m "not soak"

test-rest: install
	$(PYTEST) $(PARALLEL) -m "(slow or faults or gpu) and not soak"

soak: install
	$(PYTEST) -m soak

lint: install
	$(TRACKED) '*.py' '*.pyi' | xargs -0 $(BIN)/ruff check
	$(TRACKED) '*.py' '*.pyi' | xargs -0 $(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TRACKED) | xargs -0 $(BIN)/codespell

# The pages of the site, as they lie in the repository.
SITE_PAGES := README.md CONTRIBUTING.md CHANGELOG.md LICENSE CITATION.cff docs cluster examples tests/benchmarks

.venv/.docs: .venv/.installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[docs]"
	@touch $@

docs: .venv/.docs
	rm -rf build/docs build/site && mkdir -p build/docs
	git ls-files $(SITE_PAGES) | tar -cf - -T - | tar -xf - -C build/docs
	$(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

clean:
	rm -rf .venv .cache runs demo-data build dist *.egg-info
