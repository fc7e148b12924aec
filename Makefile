# make quickstart   install, then train and evaluate a small ResNet on digits
# make test         install, then run the tests
# make lint         install, then check style
#
# Each makes .venv by itself, once; PYTHON=python3.12 chooses the interpreter it is made with.

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart

.PHONY: quickstart test lint format clean

quickstart: .venv/installed
	$(BIN)/python -m alexnet_resnet.train --config=configs/digits.py --workdir=$(RUN)
	$(BIN)/python -m alexnet_resnet.evaluate --workdir=$(RUN)
	@echo
	@echo "Next:"
	@echo "  $(BIN)/python -m alexnet_resnet.summarize --config=configs/alexnet.py"
	@echo "  $(BIN)/python -m alexnet_resnet.train --config=configs/digits.py --workdir=runs/plain --config.model.residual=False"

test: .venv/installed-dev
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv module is needed: apt install python3-venv"; exit 1; }

# The stamps are older than setup.py only after it changed: then, and only then, pip is asked again.
.venv/installed: setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: setup.py .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
