# Two commands, each enough by itself on a fresh machine: `make demo` and `make test`. Both set up first, which takes no time if it is done.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

export VENV ?= .venv
export PYTHON ?=
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

CONFIG ?= configs/blockworld.yaml
NAME = $(basename $(notdir $(CONFIG)))
PYTEST ?=

.PHONY: help setup demo test check schema

help: ## Show this list.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: ## Make .venv and install world-r1 (done by the others when needed).
	@scripts/setup.sh

demo: setup ## Train the embedded world model with 3D rewards and show the report (about 15 minutes on 2 cores).
	@if [ -f runs/$(NAME)/summary.json ]; then \
	    echo "runs/$(NAME) is complete; remove it to train again"; \
	else \
	    $(VENV)/bin/world-r1 train --config $(CONFIG) --resume; \
	fi
	@echo "report: $(CURDIR)/runs/$(NAME)/report.html"

test: setup ## Run the tests in two processes, which share them by file; PYTEST="-k flow" selects, PYTEST="-n 0" takes one.
	@$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

check: setup ## Run the linter, the formatter's check and the type checker.
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

schema: setup ## Write configs/schema.json and docs/configuration.md from world_r1/config.py.
	@$(VENV)/bin/python -m world_r1.config_docs
