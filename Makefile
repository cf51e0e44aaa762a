# Two commands for a newcomer: `make search` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= experiments/search.yml
# Of `make search`: a stopped experiment to go on with, and the web UI's port (default: a free one).
RESUME ?=
PORT ?=
# Of the tests: processes side by side, each with one thread and up to 2 GB.
WORKERS ?= 2

# One thread per process: on a small shared machine more are many times slower.
export OMP_NUM_THREADS ?= 1

# Of `make gpu`: where its figures go, and more arguments, e.g. "--minutes 5 --parts layers".
OUT ?= runs/gpu
ARGS ?=

.PHONY: search test test-slow gpu lint docs wheel clean

.venv/installed: requirements.lock setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

search: .venv/installed
	$(BIN)/python -m hitdet_nni.experiment $(if $(RESUME),--resume $(RESUME),$(CONFIG)) --runs runs $(if $(PORT),--port $(PORT))

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-slow: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow and not gpu"

gpu: .venv/installed
	PYTHON=$(BIN)/python bash benchmarks/gpu.sh $(OUT) $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

wheel: .venv/installed
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf .venv runs dist build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
