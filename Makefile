# make demo      train on the embedded images and write a report
# make test      run the default tests, about 9 minutes on 2 cores
# make test-all  run the default and the slow tests
# make lint      check format, lint and types; changes nothing
# make docs      build the documentation into site/; a warning is an error
#
# Each target first creates .venv if it is missing or older than requirements.txt or
# setup.py. To choose a Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed
DEMO := runs/demo

.PHONY: demo test test-all lint docs

# A second `make demo` finds the finished run and does not train again.
demo: $(INSTALLED)
	$(BIN)/ev2 train --config=configs/demo.py --workdir=$(DEMO)

# Two processes; the tests of a file run in one process and share their fixtures.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist=loadfile

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

$(DOCS_INSTALLED): $(INSTALLED) docs/requirements.txt
	$(BIN)/python -m pip install --quiet --no-compile -r docs/requirements.txt
	@touch $@

$(INSTALLED): requirements.txt setup.py
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" || \
	  { echo "$(PYTHON) is not Python 3.11 to 3.13; try: make PYTHON=python3.11" >&2; \
	    exit 2; }
	@echo "installing into $(VENV); the first time takes a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# --no-compile: most modules are never imported, and the others compile when they are.
	$(BIN)/python -m pip install --quiet --no-compile -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
