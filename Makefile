# Every target does its own set-up: `make demo` and `make test` work from a bare clone.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
RUN := runs/demo$(if $(filter-out 0,$(SEED)),-$(SEED))
export PATH := $(abspath $(BIN)):$(PATH)
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo demo-hh test doors browser long lint format bench docs dist clean

setup: .venv/.installed
.venv/.installed: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[qlora,deepspeed,eval,annotate,dev]'
	touch $@

demo: setup  ## the whole pipeline on the simulated world; SEED=1 makes another world and another run
	$(BIN)/python recipes/iterative_rlhf.py --config recipes/configs/embedded/iterative_rlhf.yaml --run $(RUN) --seed $(SEED)

demo-hh: setup  ## the pipeline on human preferences; DATA=folder with the four HH files
	$(BIN)/python recipes/iterative_rlhf.py --config recipes/configs/hh/iterative_rlhf.yaml --run runs/hh --inputs.hh $(or $(DATA),../shared/data/hh-rlhf) --seed $(SEED)

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --quiet

doors: setup  ## two processes: every training recipe by the user's command line, every file of ds_configs; a whole small run
	$(BIN)/python -m pytest --numprocesses 2 --quiet -m doors --ignore tests/distributed
	$(BIN)/python -m pytest --quiet -m doors tests/distributed

browser: setup  ## the annotation page in a real chromium, by keyboard and mouse
	$(BIN)/python -m pytest --quiet -m browser -rs tests/browser

long: setup  ## what half an hour of CI has no room for: whole plans of real stages, further kills
	$(BIN)/python -m pytest --numprocesses 2 --quiet -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	for file in benchmarks/*.py; do $(BIN)/python $$file; done

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

dist: setup
	$(BIN)/python -m build

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
