# make demo      train on the embedded images, write a report, print where it is
# make test      the default tests, under 10 minutes on 2 cores
# make test-all  those and the slow ones
# make lint      format, lint and types, changing nothing
#
# Each makes .venv first if it is missing or older than requirements.txt or setup.py.
# Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo

.PHONY: demo test test-all lint

# A finished demo is not trained again: the second run finds its checkpoint.
demo: $(INSTALLED)
	$(BIN)/ev2 train --config=configs/demo.py --workdir=$(DEMO)

# Two processes; the tests of a file stay together, for they share what they set up.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist=loadfile

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

$(INSTALLED): requirements.txt setup.py
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" || \
	  { echo "$(PYTHON) is not Python 3.11 to 3.13; try: make PYTHON=python3.11" >&2; \
	    exit 2; }
	@echo "installing into $(VENV); the first time takes a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Bytecode is written when a module is first imported; most never are.
	$(BIN)/python -m pip install --quiet --no-compile -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
