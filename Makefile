# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Every target sets up what it needs itself; an empty clone is enough.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The newest ansible-core that Python 3.11 installs is 2.19; any newer interpreter works too.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13,$(if $(shell command -v $(name)),$(name))) python3)
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
COLLECTION := .build/dev/ansible_collections/guestark/xen

.PHONY: help
help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: venv
venv: $(VENV)/.complete $(COLLECTION)  ## make the virtual environment .venv and the path ansible-core imports from

# Debian's python3 comes without ensurepip; `system` installs it when that is so.
$(VENV)/.complete: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || tests/tools/system-packages python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

# The repository's root is the collection's root: a link is all that Python needs to import it by its full name.
$(COLLECTION):
	@mkdir -p $(@D)
	@ln -sfn ../../../.. $@

.PHONY: system
system:  ## install the Debian packages the tests need, where a command is missing
	@tests/tools/system-packages

.PHONY: test
test: venv system lint sanity  ## lint, sanity, unit and integration tests
	$(BIN)/python -m pytest tests/unit tests/integration

.PHONY: lint
lint: venv  ## ruff, ansible-lint, changelog and documentation checks
	$(BIN)/ruff check
	PATH="$(BIN):$$PATH" ANSIBLE_COLLECTIONS_PATH=.build/dev ansible-lint --offline --profile production
	$(BIN)/antsibull-changelog lint
	PATH="$(BIN):$$PATH" antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self "$$(tests/tools/collection-copy .build/lint)"

.PHONY: sanity
sanity: venv system  ## ansible-test sanity, for every Python found
	tests/tools/sanity

.PHONY: unit
unit: venv system  ## unit tests
	$(BIN)/python -m pytest tests/unit

.PHONY: integration
integration: venv system  ## playbooks against simulated pools
	$(BIN)/python -m pytest tests/integration

PROOFS := tests/integration/test_random_failures.py \
    tests/integration/test_object_store_memory.py \
    tests/integration/test_second_site.py \
    tests/unit/plugins/module_utils/engine/test_histories.py \
    tests/unit/plugins/module_utils/repository/test_repository_flips.py

.PHONY: proofs
proofs: venv system  ## the tests of reliability at full length: kills, cuts, every bit, histories
	GUESTARK_PROOFS=1 $(BIN)/python -m pytest -s $(PROOFS)

.PHONY: test-matrix
test-matrix: venv system  ## sanity and tests with the oldest and the newest ansible-core and Python found here
	tests/tools/matrix

.PHONY: docs
docs: venv  ## build the documentation site in .build/docs/site
	tests/tools/docs

.PHONY: demo
demo: venv system  ## back up, lose and restore virtual machines of simulated pools
	tests/demo/run

.PHONY: demo-consistency
demo-consistency: venv system  ## back up guests by the four methods
	$(BIN)/python tests/demo/consistency.py

.PHONY: bench
bench: venv system  ## measure backup and restore
	tests/performance/run
