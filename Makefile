# A clone, Python >= 3.10 with venv, and make: `make demo` and `make test` need nothing else.
PYTHON ?= python3
WITHIN = timeout --foreground --signal=INT --kill-after=10
STEPS = .venv/bin/python -m utils.benchmark --device cuda --rounds 3

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

gpu: .venv/installed ## check the GPU path on this machine and time it, in seven minutes at most; needs CUDA
	$(WITHIN) 240 .venv/bin/python -m pytest -rs -m gpu
	$(WITHIN) 90 $(STEPS) --model res34 --objectives margin soft --json figures/gpu/res34.json
	$(WITHIN) 45 $(STEPS) --model res18 --objectives margin --json figures/gpu/res18.json
	$(WITHIN) 45 $(STEPS) --model vgg11 --objectives margin --json figures/gpu/vgg11.json

regime: .venv/installed ## the paper's own regime on one GPU, nine minutes at a time; the same command goes on
	timeout --foreground --signal=TERM 9m .venv/bin/python -m figures.regime --jobs 2

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade -r requirements.txt
	touch .venv/installed
