# Two commands for a newcomer: `make search` and `make test`. Both set up .venv first, which belongs to make.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= experiments/search.yml
# Of `make search`: a stopped experiment to go on with, and the web UI's port (default: a free one).
RESUME =
PORT =
# Of the tests: processes side by side, each with one thread and up to 2 GB.
WORKERS ?= 2

# One thread per process: on a small shared machine more are many times slower.
export OMP_NUM_THREADS ?= 1

# Of `make gpu`: where its figures go, and more arguments, e.g. "--minutes 5 --parts layers".
OUT ?= runs/gpu
ARGS ?=

.PHONY: install search test test-slow test-fresh gpu lint docs wheel clean

# Checks first; does nothing where .venv is finished.
install:
	@command -v $(PYTHON) >/dev/null || { echo "install: there is no $(PYTHON): install Python (Debian, Ubuntu: apt install python3-venv), or name one, as in make PYTHON=python3.13" >&2; exit 2; }
	@$(PYTHON) install.py

search: install
	$(BIN)/python -m hitdet_nni experiment $(if $(RESUME),--resume $(RESUME),$(CONFIG)) --runs runs $(if $(PORT),--port $(PORT))

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart=0 -m "not slow and not gpu"

test-slow: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart=0 -m "slow and not gpu"

# Root, debootstrap, twenty minutes: a Debian 13 with nothing, from the installation to a retrained detector.
test-fresh:
	$(PYTHON) tests/repository/fresh_machine.py

gpu: install
	PYTHON=$(BIN)/python bash benchmarks/gpu.sh $(OUT) $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

wheel: install
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf .venv dist build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
