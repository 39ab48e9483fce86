PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint recording wheel bench-env

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(VENV)/.installed  ## a real corpus through the whole path, in minutes
	$(BIN)/fmscale quickstart

# Kernels on their own: they run under Triton's interpreter, which is chosen before they are imported.
test: $(VENV)/.installed  ## lint, types, layers and the fast tests
	$(MAKE) lint
	$(BIN)/python -m pytest -m "not slow" --ignore tests/kernels
	$(BIN)/python -m pytest -m "not slow" tests/kernels

test-slow: $(VENV)/.installed  ## the rest: real clusters, long fault campaigns, README commands
	$(BIN)/python -m pytest -m slow --ignore tests/kernels
	$(BIN)/python -m pytest -m slow tests/kernels

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

recording: $(VENV)/.installed  ## README's drawing of a run that is killed and goes on at another size
	$(BIN)/python docs/recording/record.py

wheel: $(VENV)/.installed  ## dist/fmscale-VERSION-py3-none-any.whl
	rm -rf build
	$(BIN)/pip wheel -q --no-deps --wheel-dir dist .

bench-env: .venv-bench/.installed  ## the peers of `fmscale bench loader`, whose pins conflict with ours

.venv-bench/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -q -r benchmarks/peers/requirements.txt
	touch $@
