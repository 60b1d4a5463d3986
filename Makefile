# make demo   environment, embedded scenes, a small UNITER trained on them, retrieval table and pictures
# make test   environment, lint, types, tests
# make test-lowest   the tests on the lowest versions that pyproject.toml admits, in an environment of their own
# make learn  small versions of all systems, trained for some minutes each, against a model that is blind
# make fuzz SECONDS=600   damaged inputs for every reader, of which each must be read or refused by an error of ours
# make faults MINUTES=10   random kills, signals, flips, full disks and stalls, held against docs/reliability.md

PYTHON ?= python3
MINUTES ?= 10
SECONDS ?= 600
BIN := .venv/bin
DEMO := runs/demo

.PHONY: install demo learn test test-lowest lint faults fuzz
install: .venv/installed

.venv/installed: pyproject.toml setup.py requirements.lock
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@

demo: install
	$(BIN)/vlp train uniter_small run_dir=$(DEMO) $$(test -e $(DEMO)/config.yaml && echo --resume last)
	$(BIN)/vlp retrieve $(DEMO) --split val --gallery 200

faults: install
	$(BIN)/python tests/faults/run.py --minutes $(MINUTES)

fuzz: install
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS)

learn: install
	$(BIN)/vlp learn

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[test]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto
