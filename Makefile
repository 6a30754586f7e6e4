# Everything is run from .venv, which the first target that needs it makes; the second time it costs nothing.
# PYTHON=...  another interpreter to make .venv with (3.11 or newer)

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check bench clean

help:
	@echo "make setup              make $(VENV) and install the pinned requirements (also done by all the others)"
	@echo "make demo               Shakespeare to tokenizer, data, autoencoder, CALM, score and report, in runs/demo"
	@echo "make demo CORPUS=path   the same with your own text, JSONL or folder"
	@echo "make test               all tests but the slow ones"
	@echo "make test-slow          the slow ones"
	@echo "make check              lint, format, types and the rules of the design"
	@echo "make bench              all benchmarks, into benchmarks/results.json"
	@echo "make bench ONLY=name    one of them (the names are the files of benchmarks/cases)"
	@echo "make clean              remove $(VENV), caches and build leftovers; runs/ stays"
	@echo
	@echo "On Linux, PyPI's torch brings CUDA along. The smaller CPU build:"
	@echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup"

setup: $(READY)
	@echo "$(VENV) is ready"

# Written last, so that an interrupted installation is taken up again.
$(READY): requirements-cpu.txt setup.py pyproject.toml
	@new() { command -v "$$1" >/dev/null && "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	for python in $(PYTHON) python3.11 python3; do if new $$python; then found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then \
	    echo "error: no Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python" >&2; exit 2; \
	fi; \
	echo "Setting up $(VENV) with $$found: about two minutes, once ..."; \
	[ -x $(BIN)/python ] || $$found -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -r requirements-cpu.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# One thread: models this small gain little from a second, and beside any other process two of them wait for each other.
demo: export OMP_NUM_THREADS ?= 1

demo: $(READY)
	@$(BIN)/python tools/demo.py $(if $(CORPUS),--corpus "$(CORPUS)")

# Several ranks at a time share the cores in tests: one thread each is quicker than all fighting.
test test-slow: export OMP_NUM_THREADS ?= 1

test: $(READY)
	@$(BIN)/python -m pytest -m "not slow"

# Triton, 300 MB, is for the test of a GPU kernel, which its interpreter runs; without it that test is skipped.
test-slow: $(READY)
	@$(BIN)/python -m pip install -qq triton==3.9.0 || echo "Triton is not there for this machine"
	@$(BIN)/python -m pytest -m slow --timeout 3600

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/design

bench: $(READY)
	@$(BIN)/python -m benchmarks.run $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
