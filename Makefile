# SPDX-License-Identifier: Apache-2.0
# make digits   trains a small Mixer on handwritten digits
# make test     passes the tests
# make lint     checks the style

PYTHON ?= python3
WORKDIR ?= runs/digits
BIN = .venv/bin

.PHONY: digits test lint format clean

digits: .venv/installed
	$(BIN)/python -m mixer.data prepare digits
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)

test: .venv/installed-dev
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@
