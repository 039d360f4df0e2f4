# make demo and make test do everything from a fresh clone: they make .venv and install what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The exporter and the tests need PyTorch; README, "Installing the exporter", says how to get the small CPU build. The
# pin keeps every environment at one version. On a machine with a GPU: make TORCH=torch ...
TORCH ?= torch==2.13.0
# Test processes that run side by side.
JOBS ?= 2

.PHONY: demo test test-all lint format bench clean

demo: $(VENV)/.installed-demo
	$(BIN)/python -m examples.semantic_search

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# stonnx beside its peers. Each gets an environment of its own under .venvs/, made the first time. BENCH holds options:
# make bench BENCH="--rounds 1 --systems stonnx,openvino --stsb stsb-en-dev.csv"
bench:
	$(PYTHON) -m benchmarks.environments
	.venvs/sentence-transformers-6/bin/python -m benchmarks $(BENCH)

clean:
	rm -rf $(VENV) .venvs .cache/benchmarks bundles

$(VENV)/.installed-torch:
	$(PYTHON) -c 'import sys; sys.exit("stonnx needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)"
	touch $@

$(VENV)/.installed-demo: $(VENV)/.installed-torch pyproject.toml
	$(BIN)/python -m pip install -q -e ".[cpu,export,demo]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@
