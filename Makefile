# SPDX-License-Identifier: Apache-2.0
# make digits   trains a small Mixer on handwritten digits
# make transfer pre-trains on the digits 0 to 4, fine-tunes on 5 to 9
# make test     passes the tests, or those of TESTS="tests/test_mixer.py ..."
# make lint     checks the style
# PYTHON=python3.13 VENV=.venv-3.13, after any of them, takes another Python.

PYTHON ?= python3
WORKDIR ?= runs/digits
TRANSFER ?= runs/transfer
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: digits transfer test lint format clean

digits: $(VENV)/installed
	$(BIN)/python -m mixer data prepare digits
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)

transfer: $(VENV)/installed
	$(BIN)/python -m mixer data prepare digits/0to4
	$(BIN)/python -m mixer data prepare digits/5to9
	$(BIN)/python train.py --config=configs/transfer.py:pretrain --workdir=$(TRANSFER)/pretrain
	$(BIN)/python -m mixer sweep --config=configs/transfer.py:finetune \
	  --config.init=$(TRANSFER)/pretrain --workdir=$(TRANSFER)/finetune
	$(BIN)/python -m mixer sweep --config=configs/transfer.py:scratch --workdir=$(TRANSFER)/scratch
	$(BIN)/python -m benchmarks.transfer $(TRANSFER)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile \
	  --max-worker-restart=0 $(TESTS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@
