# `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-cpus test-lowest test-newest check docs bench bench-loop bench-quality bench-quality-quick bench-cdcca bench-cdcca-quick bench-eclm bench-eclm-quick clean

VENV := .venv
PY := $(VENV)/bin/python
# Written last, so that an installation that was cut short is taken up again.
STAMP := $(VENV)/.installed
# What the tests need beside the package.
EXTRAS := dev,docs,answers,bertscore,digits,eclm,metrics,onnx,report,sweep,tensorboard,video
comma := ,
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# What others offer, to compare with: an environment of its own, no dependency of the project.
BENCH_VENV := .bench-venv
BENCH_STAMP := $(BENCH_VENV)/.installed
# What carries messages over a network: it holds other versions of common packages than ours, and the
# two need no common environment.
FLOWER_VENV := .flower-venv
FLOWER_STAMP := $(FLOWER_VENV)/.installed
# The variable: no announcement of another tool in the output.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
# One thread a worker: two workers with two threads each would fight over two cores.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(STAMP) ## Train FedAvg with answers on scikit-learn's digits: no download, CPU is enough
	$(PY) cli.py fit --config configs/quickstart.yaml

test: $(STAMP) $(FLOWER_STAMP) ## Run the tests, without those marked slow
	$(PYTEST)

test-slow: $(STAMP) $(FLOWER_STAMP) ## Run the tests marked slow
	$(PYTEST) -m slow

test-lowest: .lowest-venv/.installed ## Run the tests with the lowest versions that pyproject.toml admits
test-newest: .newest-venv/.installed ## Run the tests with the newest versions that pyproject.toml admits
test-lowest test-newest: test-%:
	OMP_NUM_THREADS=1 .$*-venv/bin/python -m pytest -n 2 --dist worksteal

# What pytest is given there, as in ARGS="tests/unit -k svd".
ARGS ?=

test-cpus: $(STAMP) ## Run the tests as on six other processors and numbers of threads (an hour)
	$(PY) scripts/test_cpus.py $(ARGS)

check: $(STAMP) ## Lint, formatting, types, declared dependencies and the documentation site
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m deptry src
	$(MKDOCS) --site-dir .cache/site

docs: $(STAMP) ## Build the documentation site into site/
	$(MKDOCS)

bench: $(STAMP) $(BENCH_STAMP) ## Speed and memory, with the loops of others (over 2 h); fills docs/results.md
	$(PY) -m benchmarks.all --write docs/results.md

bench-loop: $(STAMP) $(BENCH_STAMP) ## Our loop against plain PyTorch, pfl-research, Flower and Lightning
	$(PY) -m benchmarks.loop

# Folder of the UR Fall data, for the benchmarks.
URFD ?= data/urfd

bench-quality: $(STAMP) ## Compare all methods on real data (hours); fills the tables of the documents
	$(PY) -m benchmarks.quality --root $(URFD) --write docs/results.md README.md

bench-quality-quick: $(STAMP) ## The quickstart beside its rivals; needs no data
	$(PY) -m benchmarks.quality --study quick --write docs/results.md

bench-cdcca: $(STAMP) ## CD-CCA's parts and rivals on two streams (an hour); keeps what has been run
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.cdcca --root $(URFD) --jobs 2 --write docs/results.md

bench-cdcca-quick: $(STAMP) ## The same on the digits in short (minutes)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.cdcca --quick --jobs 2 --write docs/results.md

bench-eclm: $(STAMP) ## ECLM and its rivals on many devices (an hour); keeps what has been run
	$(PY) -m benchmarks.eclm devices --write docs/results.md

bench-eclm-quick: $(STAMP) ## The same in short (minutes)
	$(PY) -m benchmarks.eclm devices --quick --write docs/results.md

clean: ## Remove caches and build output; keep .venv and runs/
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist lightning_logs
	find src tests -depth \( -name __pycache__ -o -name '*.egg-info' \) -exec rm -rf {} +

# An environment whose pip works is kept and brought up to date; any other is built anew.
# --require-virtualenv: a .venv that was half deleted still holds a link to the system's Python, and pip
# run through it would install there.
PIP := $(PY) -m pip --require-virtualenv
$(STAMP): pyproject.toml constraints.txt
	$(PIP) install pip >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# uv finds the versions, pip installs them: it takes a build of torch for the CPU where one is at hand, and
# torch stays at the version of constraints.txt, since each other one is a download of gigabytes.
.lowest-venv/.installed: RESOLUTION := lowest-direct
.newest-venv/.installed: RESOLUTION := highest
.lowest-venv/.installed .newest-venv/.installed: .%-venv/.installed: pyproject.toml constraints.txt | $(STAMP)
	$(PYTHON) -m venv --clear .$*-venv
	grep '^torch==' constraints.txt > .$*-venv/torch.txt
	$(PY) -m uv pip compile --quiet --resolution $(RESOLUTION) --python $(PY) -c .$*-venv/torch.txt \
		$(addprefix --extra ,$(subst $(comma), ,$(EXTRAS))) pyproject.toml -o .$*-venv/versions.txt
	.$*-venv/bin/python -m pip --require-virtualenv install -c .$*-venv/versions.txt -e '.[$(EXTRAS)]'
	touch $@

$(FLOWER_STAMP): constraints-flower.txt
	$(PYTHON) -m venv --clear $(FLOWER_VENV)
	$(FLOWER_VENV)/bin/python -m pip --require-virtualenv install --quiet -c $< flwr
	touch $@

$(BENCH_STAMP): benchmarks/peers/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip --require-virtualenv install -r $< -e '.[digits,metrics]'
	touch $@
