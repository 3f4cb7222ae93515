# `make demo` and `make test` install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test soak lint clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "$(PYTHON) is not Python 3.11 or 3.12: run make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into .venv (torch with its CUDA libraries, Ray, MLflow: about 3 GB to download)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install
	$(BIN)/polyvit synth demo-data
	$(BIN)/polyvit cotrain demo

test: install
	$(BIN)/python -m pytest

soak: install
	$(BIN)/python -m pytest -m soak

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

clean:
	rm -rf .venv runs demo-data build dist *.egg-info
