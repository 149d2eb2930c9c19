# A clone, Python >= 3.10 with venv, and make: `make demo` and `make test` need nothing else.
PYTHON ?= python3

.PHONY: help demo test lint gpu

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed ## watermark, steal and prove on digits, in minutes on a CPU
	.venv/bin/python -m figures.demo

test: .venv/installed lint ## lint, then the whole test suite
	.venv/bin/python -m pytest

lint: .venv/installed ## style (ruff), and which package may import which (import-linter)
	.venv/bin/ruff check .
	.venv/bin/lint-imports

gpu: .venv/installed ## check the GPU path on this machine and time it, in five minutes; needs CUDA
	.venv/bin/python -m utils.check_gpu

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade -r requirements.txt
	touch .venv/installed
