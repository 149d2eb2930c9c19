# A clone, Python >= 3.10 with venv, and make: `make demo` and `make test` need nothing else.
# `make gpu PY=python3` uses a python that has torch, and installs nothing; `make regime REGIME="--seeds 1 --first 3"`.
PYTHON ?= python3
PY ?= .venv/bin/python
READY = $(if $(filter .venv/%,$(PY)),.venv/installed)
WITHIN = timeout --foreground --signal=INT --kill-after=10
STEPS = $(PY) -m utils.benchmark --device cuda --rounds 3

.PHONY: help demo test lint gpu regime

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed ## watermark, steal and prove on digits, in minutes on a CPU
	.venv/bin/python -m figures.demo

test: .venv/installed lint ## lint, then the whole test suite
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed ## style (ruff), and which package may import which (import-linter)
	.venv/bin/ruff check .
	.venv/bin/lint-imports

gpu: $(READY) ## check the GPU path on this machine and time it, in seven minutes at most; needs CUDA
	failed=0; \
	$(WITHIN) 240 $(PY) -m pytest -rs tests/gpu/test_gpu_steps.py tests/gpu/test_gpu_commands.py || failed=1; \
	$(WITHIN) 90 $(STEPS) --model res34 --objectives margin soft --json figures/gpu/res34.json || failed=1; \
	$(WITHIN) 45 $(STEPS) --model res18 --objectives margin --json figures/gpu/res18.json || failed=1; \
	$(WITHIN) 45 $(STEPS) --model vgg11 --objectives margin --json figures/gpu/vgg11.json || failed=1; \
	exit $$failed

regime: $(READY) ## the paper's own regime on one GPU, nine minutes at a time; the same command goes on
	timeout --foreground --signal=TERM --kill-after=30 9m $(PY) -m figures.regime $(REGIME); status=$$?; \
	$(PY) -m figures.regime $(REGIME) --no-run && [ $$status = 0 -o $$status = 124 ]

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade -r requirements.txt
	touch .venv/installed
