# Every command sets up one virtual environment in .venv, the first time, and then does its work.
#   make demo                                       simulate an atlas, train, minify, ask, draw, make a card (about two minutes)
#   make demo DATA=my.h5ad BATCH=donor LABELS=type  the same on your own counts
#   make test                                       the fast tests;   make test TESTS="-m slow" the slow ones
#   make docs                                       the documentation as a site in build/site; a dead link is an error
#   make resolve                                    can pip install constraints.txt on every Python and system?
#   make wheel                                      does a wheel install without extras and run the quickstart?
#   make dist                                       a wheel and an sdist in dist/, checked: what they need and nothing else
#   make page                                       is the page of an atlas what its sources are built to? (needs npm)
#   make pages                                      do the tutorial, the pages after it and the demo run as they are shown?
#   make notebooks                                  do the notebooks of the documentation run to their end?
#   make metrics, make newest                       the tests of metrics to services; those of files with the newest releases
# The environment can be chosen when it is made ('make clean' removes it):
#   make demo TORCH=cpu         the CPU build of torch, from PyTorch's own index: 0.8 GB to download, not 3.1 GB
#   make demo PYTHON=python3.13
#   make demo LATEST=1          the newest releases of what we use, not those of constraints.txt
PYTHON ?= python3
TORCH ?=
LATEST ?=
VENV := .venv
BIN := $(VENV)/bin
TESTS ?=
DEMO_OUT ?= demo
TORCH_INDEX := https://download.pytorch.org/whl
# uv, where it is there, installs in seconds what takes pip minutes; each reads its own settings, of indexes for example.
INSTALLER := $(if $(shell command -v uv 2> /dev/null),uv,pip)
INSTALL_uv := uv pip install --python $(BIN)/python --index-strategy unsafe-best-match # the newest of all indexes, as pip
INSTALL_pip := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: demo test lint links docs pages notebooks resolve wheel dist page metrics newest clean

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"atlasvi needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV), once: $(INSTALLER) downloads what atlasvi, its tests and the demo need."
ifneq ($(TORCH),)
	@echo "torch comes from $(TORCH_INDEX)/$(TORCH); with the CPU build it is 0.8 GB in all, 3 GB installed."
else ifeq ($(shell uname -s),Linux)
	@echo "On Linux PyPI's torch brings CUDA: 3.1 GB in all, 6 GB installed. Without a GPU: make TORCH=cpu ... (0.8 GB)."
endif
	@$(PYTHON) -m venv $(VENV)
	$(INSTALL_$(INSTALLER)) $(if $(LATEST),,--constraint constraints.txt) $(if $(TORCH),--extra-index-url $(TORCH_INDEX)/$(TORCH)) --editable ".[dev]"
	@touch $@

demo: $(VENV)/ready
	@$(BIN)/python examples/demo.py --out "$(DEMO_OUT)" $(if $(DATA),--data "$(DATA)") $(if $(BATCH),--batch-key "$(BATCH)") $(if $(LABELS),--labels-key "$(LABELS)")

test: $(VENV)/ready
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(TESTS)

links: # the packages under their own names, for tools that do not import them
	@mkdir -p .typecheck/atlasvi
	@for part in loaders kernels engine; do ln -sfn ../../$$part .typecheck/atlasvi/$$part; done

lint: $(VENV)/ready links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.typecheck $(BIN)/lint-imports

docs: $(VENV)/ready links
	@NO_MKDOCS_2_WARNING=1 .ci/beside "mkdocs-material>=9.6" "mkdocstrings[python]>=0.29" -- .ci/site.py

pages: $(VENV)/ready
	$(BIN)/python -m pytest -m slow tests/test_pages.py tests/test_examples.py

notebooks: $(VENV)/ready
	@.ci/beside nbclient ipykernel -- .ci/notebooks.py

resolve: $(VENV)/ready
	@$(BIN)/python .ci/resolve.py

wheel: $(VENV)/ready
	@$(BIN)/python .ci/wheel.py

dist: $(VENV)/ready
	@$(BIN)/python .ci/dist.py

page:
	@.ci/page

metrics: $(VENV)/ready
	@.ci/metrics

newest: $(VENV)/ready
	@.ci/newest

clean:
	rm -rf $(VENV) demo build dist *.egg-info .typecheck .mypy_cache .ruff_cache .pytest_cache
