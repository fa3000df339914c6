.PHONY: help install check test slow bench
VENV ?= .venv
BIN = $(VENV)/bin

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

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

slow: ## the long tests too
	$(BIN)/pytest -q -m slow

bench: ## rate-distortion and speed of the shape tokenizer
	$(BIN)/python benchmarks/shape_rate_distortion.py
	$(BIN)/python benchmarks/shape_speed.py
