# make demo and make test do everything from a fresh clone: they make .venv and install their dependencies.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The exporter and the tests need PyTorch. docs/deployment.md says how to get the small CPU build. The
# pin keeps every environment at one version. On a machine with a GPU: make TORCH=torch ...
TORCH ?= torch==2.13.0
# The number of test processes that run side by side.
JOBS ?= 2

# Versions that the exporter has to work with. Each has a file of requirements.
ENVIRONMENTS := $(basename $(notdir $(wildcard tests/environments/transformers*.txt)))

.PHONY: demo serve-demo test test-all test-runtime test-environments test-integrations test-clients test-onnxruntime test-sanitize kernels lint format bench bench-serve clean

demo: $(VENV)/.installed-demo $(VENV)/.installed-kernels
	$(BIN)/python -m examples.semantic_search

# A server with the embedded model in int8 and in fp32, and its page at http://127.0.0.1:8080
serve-demo: $(VENV)/.installed-demo $(VENV)/.installed-kernels
	$(BIN)/python -m pip install -q -e ".[serve]"
	$(BIN)/python -m examples.semantic_search --export-only
	$(BIN)/python -m examples.semantic_search --export-only --dtype fp32
	$(BIN)/stonnx serve bundles/all-MiniLM-L6-v2-fp32 bundles/all-MiniLM-L6-v2-int8

test: $(VENV)/.installed-dev $(VENV)/.installed-kernels
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-all: $(VENV)/.installed-dev $(VENV)/.installed-kernels
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# The tests of the exporter, with each of these versions. make test-transformers4 runs them with one version alone.
test-environments: $(ENVIRONMENTS:%=test-%)

test-transformers%: .venv-transformers%/.installed
	$(<D)/bin/python -m pytest -n $(JOBS) --dist loadfile tests/zoo tests/export tests/parity/test_models.py tests/hub/test_hub.py

# The runtime's tests, without PyTorch.
test-runtime: .venv-runtime/.installed
	$(<D)/bin/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

# The tests of adapters, engines and examples, with the libraries that they need, about 2.5 GB. Spark needs Java, and
# tritonserver Python's shared library (libpython3.11.so.1.0 for Python 3.11).
test-integrations: .venv-integrations/.installed .venv-triton/.installed
	$(<D)/bin/python -m pytest -o asyncio_default_fixture_loop_scope=function \
	    tests/integrations tests/shipped/test_docs.py tests/shipped/test_examples.py

# The tests of the server with clients of other projects.
test-clients: .venv-clients/.installed
	$(<D)/bin/python -m pytest tests/serve/test_clients.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Compares stonnx with its peers. The first run makes an environment for each under .venvs/. BENCH holds options:
# make bench BENCH="--rounds 1 --systems stonnx,openvino --stsb stsb-en-dev.csv"
bench:
	$(PYTHON) -m benchmarks.peers.environments
	.venvs/sentence-transformers-6/bin/python -m benchmarks $(BENCH)

# Compares stonnx serve under load with its peers. It takes 35 minutes, 20 of them soak. BENCH holds options:
# make bench-serve BENCH="--soak-minutes 1 --seconds 4"
bench-serve:
	$(PYTHON) -m benchmarks.peers.environments sentence-transformers-6 infinity
	.venvs/sentence-transformers-6/bin/python -m benchmarks.serving $(BENCH)

clean:
	rm -rf $(VENV) .venvs .cache/benchmarks .venv-* bundles

$(VENV)/.installed-torch:
	$(PYTHON) -c 'import sys; sys.exit("stonnx needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) and what it needs into $(VENV): about 1 GB, some minutes."
	$(BIN)/python -m pip install -q "$(TORCH)"
	touch $@

$(VENV)/.installed-demo: $(VENV)/.installed-torch pyproject.toml
	$(BIN)/python -m pip install -q -e ".[cpu,export,demo]"
	touch $@

# Builds native kernels with this machine's compiler. Without one, everything works: blocks run as stock operators.
kernels: $(VENV)/.installed-torch
	rm -f $(VENV)/.installed-kernels
	$(MAKE) $(VENV)/.installed-kernels

KERNEL_SOURCES := $(wildcard kernels/*.* kernels/src/* kernels/stonnx_kernels/*.py)
$(VENV)/.installed-kernels: $(VENV)/.installed-torch $(KERNEL_SOURCES)
	@if ! command -v $(CXX) > /dev/null; then \
	    echo "There is no C++ compiler ($(CXX)): going on without native kernels. Install g++ and run: make kernels"; \
	else $(BIN)/python -m pip install -q ./kernels || \
	    echo "The native kernels could not be built, see above: going on without them."; fi
	touch $@

# The tests of the kernels with the oldest onnxruntime that stonnx runs on. The other tests have the newest one.
test-onnxruntime: .venv-onnxruntime1.26/.installed
	$(<D)/bin/python -m pip install -q ./kernels
	$(<D)/bin/python -m pytest -n $(JOBS) --dist loadfile tests/kernels tests/export/kernels $(wildcard tests/device/test_kernels*.py)

# The tests of the kernels, with a library that AddressSanitizer and UndefinedBehaviorSanitizer check.
test-sanitize: $(VENV)/.installed-dev
	cd tests && ../$(BIN)/python -m kernels.sanitized

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	$(BIN)/python -m pip install -q -U "pip>=25.1"
	$(BIN)/python -m pip install -q --group dev
	touch $@

.venv-runtime/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q -U "pip>=25.1"
	$(@D)/bin/python -m pip install -q -e ".[cpu,sparse]" --group test-runtime
	touch $@

# tritonserver and its Python backend, which works with numpy 1 only.
.venv-triton/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q "nvidia-pytriton==0.7.0" "numpy<2" -e ".[cpu,sparse]"
	touch $@

.PRECIOUS: .venv-%/.installed
.venv-%/.installed: tests/environments/%.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q "$(TORCH)"
	$(@D)/bin/python -m pip install -q -U "pip>=25.1"
	$(@D)/bin/python -m pip install -q -e ".[cpu,export,demo]" --group dev -r $<
	touch $@
