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
