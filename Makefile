# Every target works on a fresh clone: it makes .venv, installs the pinned packages, builds the compiled parts, and does so once.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml MANIFEST.in $(shell find csrc -type f)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt

.PHONY: demo demo-distributed test check bench fuzz docs build clean
.DEFAULT_GOAL := build

build: .venv/built

.venv/packages: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch numpy pybind11 ninja setuptools wheel
	touch $@

.venv/built: .venv/packages $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[triton,fuzz,test,demo,bench,peers,docs]'
	touch $@

# Train with torch's losses and with ours; curves in demo.png.
demo: build
	$(BIN)/fastloss demo $(ARGS)

# Two processes train on one batch together, as one process does on the whole.
demo-distributed: build
	$(BIN)/torchrun --standalone --nproc-per-node 2 -m fastloss.demo_distributed

# A test process for each processor; blocks of neighbours, since neighbours share what is costly to make.
PYTEST := $(BIN)/pytest -q --numprocesses logical --maxprocesses 8 --dist worksteal

# The whole suite.
test: build
	$(PYTEST) $(ARGS)

# The quick part of the suite.
check: build
	$(PYTEST) -m "not slow" $(ARGS)

# Without arguments the whole table, then how cost grows with size and what a second thread brings.
bench: build
	$(BIN)/python -m bench $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m bench.scaling)

fuzz: build
	$(BIN)/fastloss fuzz $(ARGS)

# Pages in build/docs/html; a link that leads nowhere is an error.
docs: build
	$(BIN)/python -m docs $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info fastloss/*.so demo.png .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
