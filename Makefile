# `make help` explains itself. `make run` and `make test` are all a newcomer needs.
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PACKAGES := service auth observability
SOURCES := $(PACKAGES) tests benchmarks docs

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format coverage ci tools lock docs bench k8s clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## Make .venv with everything that the lock names, `tollbook` included

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Tollbook needs Python 3.11 or newer. Try: make PYTHON=python3.11 $(MAKECMDGOALS)'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: setup ## Run everything on this machine: a small model, the database, the service
	@exec $(BIN)/tollbook run

test: setup ## Run every test
	$(BIN)/pytest

lint: setup ## Style, types, and who may import whom
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## Put the code into its standard form
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

coverage: setup ## Run every test and show the branches that none takes
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

ci: tools setup lint coverage ## What has to be green before a change lands

tools: ## Install the parts that tests use and no wheel carries: a browser and Prometheus (Debian, as root)
	@if command -v chromium >/dev/null && command -v promtool >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			curl chromium prometheus >/dev/null; \
	else echo 'Install chromium and prometheus for the tests that use them; without them they are skipped.'; fi

lock: setup ## Resolve the requirements anew: hash-pinned, no index address in them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@for target in 'base pyproject.toml' 'build --group build' \
			'dev pyproject.toml --extra local --group dev --group build'; do \
		set -- $$target; name=$$1; shift; echo "requirements/$$name.txt"; \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade "$$@" \
			--override requirements/overrides.txt --generate-hashes --no-annotate --no-header \
			--no-emit-index-url --no-emit-find-links --output-file requirements/$$name.txt || exit 1; \
	done

docs: setup ## Write docs/configuration.md from the settings
	$(BIN)/python docs/write_configuration.py

k8s: ## Render k8s/base from the chart (needs helm)
	helm template tollbook helm/tollbook --skip-tests --values helm/tollbook/ci/minimal-values.yaml > k8s/base/tollbook.yaml

bench: setup ## Calls a second on one core, beside the same upstream direct
	$(BIN)/python -m benchmarks.run

clean: ## Remove what the tests and tools leave behind
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage* dist
