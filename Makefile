# Two commands: `make demo` and `make test`. Each installs what it needs into .venv first.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup gguf demo test test-all check format system embedded-base docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@sh scripts/setup.sh "$(PYTHON)"

# llama.cpp: the fast engine on CPUs and GGUF files. Built from source, so not part of setup.
gguf: setup
	@sh scripts/gguf.sh

demo: setup
	@$(BIN)/warmline demo $(ARGS)

# What the tests need beyond pip (a browser) is installed where we may; elsewhere the command is printed and the tests
# that need it are skipped, in CI they fail.
system:
	@sh scripts/system_packages.sh

# JOBS processes of one thread each; about 3 GB of memory a process.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test: setup system gguf
	$(PYTEST) -m "not slow" $(ARGS)

test-all: setup system gguf
	$(PYTEST) $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages under docs/reference that are made from the code.
docs: setup
	$(BIN)/python scripts/make_reference.py

# How the small base that ships was made: about an hour on two cores. DATA: the folder with the public sets.
DATA ?= ../shared/data
embedded-base: setup
	$(BIN)/python training/embedded_base/documents.py --data "$(DATA)"
	$(BIN)/warmline train embedded-base
	$(BIN)/python training/embedded_base/documents.py --documents 84000 --seed 3031
	$(BIN)/warmline train embedded-base --base runs/embedded-base/train/model --name embedded-base-listening \
		--set train.steps=2250 --set train.batch=36 --set train.learning_rate=1.2e-3
	$(BIN)/python training/embedded_base/documents.py --mix rambling --documents 5600 --seed 3033
	$(BIN)/warmline train embedded-base --base runs/embedded-base-listening/train/model --name embedded-base-habit \
		--set train.steps=300 --set train.batch=16 --set train.learning_rate=6e-4
	$(BIN)/python training/embedded_base/ship.py --earlier embedded-base embedded-base-listening --run embedded-base-habit

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .hypothesis
