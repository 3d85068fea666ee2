# Two commands: `make demo` and `make test`. Both set up .venv on their own; Python 3.11 or newer and make are enough.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
PARTICIPANTS ?= 48

.PHONY: demo test test-slow lint install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	rm -rf $(DEMO)
	$(BIN)/python -m bids_dl.simulate $(DEMO)/data --n-participants $(PARTICIPANTS) --random-seed 0 --nprocs 2
	$(BIN)/bids_dl $(DEMO)/data $(DEMO)/out participant --skip-bids-validation || test $$? -eq 1
	$(BIN)/bids_dl $(DEMO)/data $(DEMO)/out group
	@echo
	@echo "The report: $(DEMO)/out/group.html; one participant's: $(DEMO)/out/sub-03.html"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: install
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf .venv $(DEMO)
