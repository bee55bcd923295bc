# Everything a newcomer needs is `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV ?= .venv
# The Python to make the environment with, and `cpu` for a torch without CUDA (from torch's own index).
PYTHON3 ?= python3
TORCH ?=
PYTHON := $(VENV)/bin/python
# Without TORCH, whichever is installed stays.
STAMP := $(if $(TORCH),$(VENV)/.installed-$(TORCH),$(firstword $(wildcard $(VENV)/.installed*) $(VENV)/.installed))
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
# Or each of the hundreds of processes of a test run compiles torch, transformers and Ray anew: 20 s in place of 8.
unexport PYTHONDONTWRITEBYTECODE
# Caches, Ray and Go want a home; a user who has none gets one in the checkout.
ifneq ($(shell test -n "$$HOME" -a -w "$$HOME" && echo yes),yes)
export HOME := $(CURDIR)/.home
endif

PYTEST := $(PYTHON) -m pytest
# A test that hangs is named after so many seconds, many times what any of its tier takes.
QUICK := --tier=quick --timeout=600
SLOW := --tier=slow --timeout=1800
EXTENDED := --tier=extended --timeout=7200

.PHONY: help install demo test test-node test-slow test-all test-extended test-gpu check format generate lock cluster-up cluster-down demo-cluster clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## Install Python packages into .venv

$(STAMP): pyproject.toml requirements.lock tools/pinned.txt tools/install.py
	@mkdir -p "$$HOME"
	$(PYTHON3) tools/install.py --venv $(VENV) $(if $(TORCH),--torch $(TORCH))
	touch $@

examples/data/.prepared: $(STAMP) examples/prepare.py
	@echo "== Preparing example data (docstrings of the installed libraries) and the pretrained model"
	$(PYTHON) examples/prepare.py --into examples
	touch $@

demo: examples/data/.prepared ## Run an example study on this machine, without Kubernetes
	@echo "== Running examples/library.yaml: which library does a docstring come from?"
	$(VENV)/bin/finetune run examples/library.yaml --into runs/library
	@echo "Your own data: docs/first-study.md; $(VENV)/bin/finetune plan my.yaml, then $(VENV)/bin/finetune run my.yaml"

test: examples/data/.prepared ## Quick tests: in process, and on one real API server (built once, cached)
	@$(PYTHON) -m tests.cluster.onenode program etcd kube-apiserver kube-controller-manager kubectl > /dev/null || test -z "$$CI"
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses=3 --dist=loadfile $(QUICK) -m 'not node and not gpu' tests

test-node: examples/data/.prepared ## One study from manifest to Complete, with real pods on a real node (root)
	@$(PYTHON) -m tests.cluster.onenode build --node || test -z "$$CI"
	$(PYTEST) $(QUICK) -m node tests/e2e tests/cluster/onenode

test-all: test test-node test-slow ## Every test but the extended ones (root)

test-slow: examples/data/.prepared ## What test-all has beyond test and test-node (root)
	@$(PYTHON) -m tests.cluster.onenode build
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses=4 --dist=loadfile $(SLOW) -m 'not node and not gpu' tests
	$(PYTEST) $(SLOW) -m node tests/e2e tests/cluster/onenode

test-extended: examples/data/.prepared ## The long ones: kills by the dozen, a lost node, every kind of search, KubeRay (root; hours)
	@$(PYTHON) -m tests.cluster.onenode build
	FINETUNE_FUZZ_CASES=20000 $(PYTEST) --numprocesses=2 tests/operator/test_fuzz.py
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses=4 --dist=loadfile $(EXTENDED) -m 'not node and not gpu' tests
	$(PYTEST) $(EXTENDED) -m node tests/e2e

test-gpu: examples/data/.prepared ## Training on a GPU
	$(PYTEST) -m gpu tests

check: $(STAMP) ## Lint, types, layers, generated files
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) -m finetune_api.generate --check

format: $(STAMP) ## Format and fix what can be fixed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lock: $(STAMP) ## Pin the newest packages that pyproject.toml allows (UPGRADE="--upgrade-package torch" for one)
	UV=$(VENV)/bin/uv tools/lock.sh $(or $(UPGRADE),--upgrade)

generate: $(STAMP) ## Write the CRD, its copy in the chart, and the references of fields and hyperparameters
	$(PYTHON) -m finetune_api.generate

cluster-up: $(STAMP) ## Start a one-node Kubernetes on this machine; prints its kubeconfig
	$(PYTHON) -m tests.cluster.onenode up

cluster-down: ## Stop it and delete everything it made
	$(PYTHON) -m tests.cluster.onenode down

demo-cluster: examples/data/.prepared ## helm install and an example study on that Kubernetes, from nothing
	$(PYTHON) -m tests.e2e.demo

clean: ## Remove the virtual environment and everything the examples made
	chmod -R u+w .home 2> /dev/null || true # Go keeps its modules read-only
	rm -rf $(VENV) examples/data examples/models runs .home
