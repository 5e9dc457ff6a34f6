# Two commands for a newcomer: make demo, make test. Both make .venv and install into it on their first run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs format lower-bounds audit clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    teach a student on real data and write runs/demo/report.html"
	@echo "make test    all tests, linters, types and the picture of the imports"
	@echo "make docs    write the pages of methods anew, from their classes"
	@echo "make format  bring the code into shape"
	@echo "make lower-bounds   the oldest versions that pyproject.toml allows, and the tests on them"
	@echo "make audit   known weaknesses of the versions in constraints.txt (needs the internet)"
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

# Every bound of pyproject.toml as the version itself. On Linux the oldest torch of the index comes with CUDA: 6 GB of
# disk. Warnings are no errors here: old releases use what newer ones of others have deprecated.
LOWER := .venv-lower
LOWER_TESTS ?= tests/test_api.py tests/test_files.py tests/test_nearest.py tests/test_rowfiles.py tests/test_registry.py \
	tests/objectives tests/data tests/networks tests/evaluation tests/report tests/cli/test_commands.py \
	tests/cli/test_methods_command.py

lower-bounds:
	$(PYTHON) -m venv $(LOWER)
	grep -oE '"[a-z0-9-]+(\[[a-z]+\])?>=[0-9.]+' pyproject.toml | sed -E 's/^"//; s/\[[a-z]+\]//; s/>=/==/' | sort -u > $(LOWER)/lowest.txt
	$(LOWER)/bin/python -m pip install --disable-pip-version-check -c $(LOWER)/lowest.txt -e ".[graph,audio,parquet,ray]" pytest pytest-timeout hypothesis
	$(LOWER)/bin/python -m pytest -q -p no:cacheprovider -o filterwarnings=default $(LOWER_TESTS)

# Asks the package index about each version. --strict: without an answer it fails, and does not pass over what it
# cannot look up, as a mirror without that data base would have it.
AUDIT := .venv-audit

audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt || { echo "not audited, or something found, see above; without the internet, or by a mirror, nothing can be said" >&2; exit 1; }

clean:
	rm -rf $(VENV) $(LOWER) $(AUDIT) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
