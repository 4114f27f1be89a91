# make demo | test | lint | bench | docs | accuracy | clean. Each makes what it needs in .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)
OUT := demo-out

.PHONY: help demo test lint format bench accuracy docs mutants clean

help:
	@echo "make demo   train, evaluate and sample a small language model on real text; writes $(OUT)/report.html"
	@echo "make test   all tests, those in docstrings and documents included"
	@echo "make lint   ruff and mypy        make format     let ruff rewrite"
	@echo "make bench  speed beside PyTorch, JAX and SciPy: 12 minutes; ARGS=--quick only shows that it runs"
	@echo "python benchmarks/gpu.py  checks and measures a GPU: docs/gpu.md"
	@echo "make accuracy  the table of digits"
	@echo "make docs   check every example in the documents and rebuild the tables in them"
	@echo "make mutants  break the kernels on purpose: the tests must notice"
	@echo "make clean  remove build products and $(VENV)"

# PyTorch comes first and alone, from the pinned version: anything that asks for "torch" later is then content.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1"
	$(PIP) install --quiet --constraint constraints.txt torch
	touch $@

$(VENV)/.package: $(VENV)/.torch $(NATIVE)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) install --quiet --constraint constraints.txt --group dev
	touch $@

demo: $(VENV)/.package
	$(BIN)/lastlayer demo --out $(OUT) $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) install --quiet --constraint constraints.txt --group bench
	touch $@

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/speed.py $(ARGS)

accuracy: $(VENV)/.dev
	$(BIN)/python benchmarks/accuracy.py $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/python benchmarks/accuracy.py --write docs/accuracy.md
	$(BIN)/python -m lastlayer.learn.pages docs/lessons
	$(BIN)/python -m pytest -q --doctest-glob="*.md" docs README.md

mutants: $(VENV)/.dev
	$(PIP) install --quiet cmake ninja "nanobind>=2.9"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/mutants.py

clean:
	rm -rf $(VENV) build dist $(OUT)
