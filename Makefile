# `make help` lists the commands. PATH makes the stages' `python` and `dvc` those of the environment.
PYTHON ?= python3.11
VENV := .venv
# processes of `make test`; `make test COVERAGE=` runs without measuring coverage
JOBS := 2
COVERAGE ?= -m slipcover --source src/quintet --skip-covered
# no usage reports, also from tools that run without importing quintet
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: help repro test test-slow ui lint docs clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 16

$(VENV)/.done: pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.slow: $(VENV)/.done
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $@

$(VENV)/.docs: $(VENV)/.done
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

repro: $(VENV)/.done ## install everything, run every stage that is out of date (several at a time), upload to MLflow, print the times
	@git rev-parse --git-dir >/dev/null 2>&1 || (echo "error: DVC needs a git repository; clone the project instead of copying it"; exit 2)
	quintet repro
	quintet sync
	quintet times

# slipcover costs almost no time; coverage.py costs 40 % on Python 3.11. loadfile: a file in one process, so that its fixtures are
# made once: by default, half of the time goes into making them twice
test: $(VENV)/.done ## run the tests and print their coverage
	OMP_NUM_THREADS=1 python $(COVERAGE) -m pytest -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.slow ## run the slow tests: the whole pipeline at a tiny scale, the documented commands, a Ray cluster, a queue, faults
	python -m pytest -m slow

ui: $(VENV)/.done ## compare runs in the browser: http://127.0.0.1:5000
	quintet sync
	@echo "open one of these addresses: a study's runs with their scores, best first"
	mlflow ui --host 127.0.0.1 --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}

lint: $(VENV)/.done ## check the code with ruff and mypy
	ruff check --no-cache .
	ruff format --check --no-cache .
	mypy

docs: $(VENV)/.docs ## build the documentation site: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict

clean: ## delete everything the pipeline wrote (data, runs, checkpoints, MLflow); keep the environment and the DVC cache
	rm -rf data/synthetic data/processed runs logs .checkpoints mlartifacts mlflow.db* .mlflow* .pytest_cache .mypy_cache .ruff_cache site
