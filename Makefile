# Every target makes the virtual environment first if it is missing; nothing else is needed
# beforehand than git, make and Python 3.11 or later.

# The first of these that runs and is new enough; name another with make PYTHON=/path/to/python3.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo docs test test-changed test-ci test-slow fuzz check bench dist licences audit clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(READY): pyproject.toml
	@test -n "$(PYTHON)" \
		|| { echo "Python 3.11 or later is needed; name it: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

demo: $(READY) ## paint a small synthetic cohort and run embed, train and infer on it (3 minutes)
	$(BIN)/mil demo

docs: $(READY) ## build the documentation into docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# Two processes; the one that finishes first takes over tests from the other.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal

test: $(READY) ## run the tests that every edit should pass (8 minutes on 2 cores)
	$(PYTEST)

test-changed: $(READY) ## run only the tests that the edits since the last call affect
	$(BIN)/python -m pytest -q --testmon --testmon-forceselect; status=$$?; test $$status = 5 || exit $$status

test-ci: $(READY) ## run all tests but the slow ones, with browser, documents and doctests
	$(PYTEST) -m 'not slow and not gpu' --doctest-modules tests features mil cli

test-slow: $(READY) ## run the slow tests: demo, wheel, killed runs, Ray, pages of the documents
	$(PYTEST) -m slow

CASES ?= 10000
SEED := $(or $(SEED),$(shell date +%s))
fuzz: $(READY) ## corrupt CASES=10000 files and search for examples at random; prints its SEED
	@echo "make fuzz CASES=$(CASES) SEED=$(SEED) runs the same again"
	$(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED)
	$(BIN)/python -m tests.fuzz.guided --cases $(CASES) --seed $(SEED)
	$(PYTEST) -m 'hypothesis and not slow and not gpu' --hypothesis-profile search --hypothesis-seed $(SEED)

check: $(READY) ## formatting, lint, types, import order, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/codespell --dictionary docs/words.txt --ignore-regex '`[^`]*`|::.*|\]\([^)]*\)|https?://\S+' *.md docs/*.md docs/*/*.md

bench: $(READY) ## print the benchmarks as JSON
	for file in $(filter-out %/__init__.py $(wildcard tests/benchmarks/test_*.py tests/benchmarks/_*.py),$(wildcard tests/benchmarks/*.py)); do $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || exit 1; done

dist: $(READY) ## build wheel and source distribution into dist/ and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

licences: $(READY) ## write the list of all dependencies' licences again
	$(BIN)/python docs/licences.py > docs/reference/licences.md.new
	mv docs/reference/licences.md.new docs/reference/licences.md

audit: $(READY) ## ask PyPI for known vulnerabilities of what is installed (needs the network)
	$(BIN)/python -m pip freeze --exclude-editable \
		| $(BIN)/pip-audit --strict --no-deps --disable-pip --requirement /dev/stdin

clean: ## remove the environment, caches and the demo
	rm -rf $(VENV) demo build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .testmondata*
