# A clone, Python >= 3.10 with venv, and make: `make demo` and `make test` need nothing else.
PYTHON ?= python3

.PHONY: demo test lint

demo: .venv/installed
	.venv/bin/python -m figures.demo

test: .venv/installed lint
	.venv/bin/python -m pytest

lint: .venv/installed
	.venv/bin/ruff check .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade -r requirements.txt
	touch .venv/installed
