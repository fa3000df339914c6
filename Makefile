.PHONY: help install check test test-hf4 slow bench
VENV ?= .venv
BIN = $(VENV)/bin

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: ## make a virtual environment with everything for development
	python3 -m venv $(VENV)
	$(BIN)/pip install -q -e '.[dev]'

check: ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: ## the default tests, within 15 minutes on two cores
	$(BIN)/pytest -q

test-hf4: ## token reduction on the last transformers 4, in an environment of its own
	python3 -m venv $(VENV)-hf4
	$(VENV)-hf4/bin/pip install -q -e '.[dev]' 'transformers==4.57.6' 'timm==1.0.31'
	$(VENV)-hf4/bin/pytest -q tests/reducers tests/systems/vit tests/systems/vlm \
		tests/contracts/test_reducers.py tests/contracts/test_vlm_reducers.py

slow: ## the long tests too
	$(BIN)/pytest -q -m slow

bench: ## rate-distortion and speed of the shape tokenizer
	$(BIN)/python benchmarks/shape_rate_distortion.py
	$(BIN)/python benchmarks/shape_speed.py
