# Both commands of the README set up one virtual environment in .venv and then do their work.
#   make demo                                       simulate an atlas, train, minify, ask, draw (about three minutes)
#   make demo DATA=my.h5ad BATCH=donor LABELS=type  the same on your own counts
#   make test                                       the fast tests;   make test TESTS="-m slow" the slow ones
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?=
DEMO_OUT ?= demo

.PHONY: demo test lint clean

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"atlasvi needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) (once, a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(VENV)/ready
	@$(BIN)/python examples/demo.py --out "$(DEMO_OUT)" $(if $(DATA),--data "$(DATA)") $(if $(BATCH),--batch-key "$(BATCH)") $(if $(LABELS),--labels-key "$(LABELS)")

test: $(VENV)/ready
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .typecheck/atlasvi
	@for part in loaders kernels engine; do ln -sfn ../../$$part .typecheck/atlasvi/$$part; done
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build *.egg-info .typecheck .mypy_cache .ruff_cache .pytest_cache
