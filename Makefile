# make help lists the commands. PATH is set so that the stages' `python` and `dvc` are the environment's.
PYTHON ?= python3.11
VENV := .venv
# usage reports of tools that run without importing quintet
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: help repro test test-slow ui lint clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 14

$(VENV)/.done: pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

repro: $(VENV)/.done ## set the environment up, run every stale stage, fill MLflow up, say how long it took
	@git rev-parse --git-dir >/dev/null 2>&1 || (echo "error: DVC needs a git repository; clone the project instead of copying it"; exit 2)
	dvc repro
	quintet sync
	quintet times

test: $(VENV)/.done ## run the tests
	python -m pytest

test-slow: $(VENV)/.slow ## the whole pipeline at the smoke scale, README's commands, a Ray cluster, a queue, kills and full disks
	python -m pytest -m slow

$(VENV)/.slow: $(VENV)/.done
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $@

ui: $(VENV)/.done ## compare runs in the browser: http://127.0.0.1:5000
	quintet sync
	@echo "open http://127.0.0.1:5000/#/experiments, choose Model training at the top left, an experiment, then its runs (table or charts)"
	mlflow ui --host 127.0.0.1 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}

lint: $(VENV)/.done ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

clean: ## remove what the pipeline wrote (data, runs, checkpoints, MLflow); the environment and DVC's cache stay
	rm -rf data/synthetic data/processed runs logs .checkpoints mlartifacts mlflow.db* .mlflow* .pytest_cache .mypy_cache .ruff_cache
