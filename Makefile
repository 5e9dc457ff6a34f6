# Two commands for a newcomer: make demo, make test. Both make .venv and install into it on their first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    teach a student on real data and write runs/demo/report.html"
	@echo "make test    all tests, linters, types and the picture of the imports"
	@echo "make docs    write the pages of methods anew, from their classes"
	@echo "make format  bring the code into shape"
	@echo "make clean   remove .venv and what tools left behind (not runs/)"

# constraints.txt holds the versions that were tested together; delete the -c to take the newest
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/crossdistill demo --out runs/demo

test: check
	$(BIN)/python -m pytest -q -n auto --dist worksteal

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/python -m docs.generate

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
