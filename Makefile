# Every target builds the environment it needs; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
# processes of the tests, each with one thread
WORKERS ?= 2
PYTEST = env OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# of a training
OUTPUT ?= bundle/output
comma := ,

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-lowest clients campaign lint format phantoms train evaluate ablation table1 bench clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## build .venv with everything that the project needs

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

demo: $(INSTALLED)  ## translate a held-out phantom (and IMAGE=path), print scores, draw output/demo/demo.png
	$(BIN)/python -m custom demo $(if $(IMAGE),--image '$(IMAGE)')

test: $(INSTALLED)  ## run the tests
	$(PYTEST)

test-fast: $(INSTALLED)  ## run the tests that take no process, training or large volume of their own: after every edit
	$(PYTEST) -m 'not slow'

test-lowest: BIN := $(LOWEST)/bin
test-lowest: $(LOWEST)/.installed  ## run the fast tests with the oldest versions that pyproject.toml allows
	$(PYTEST) -m 'not slow' -W default::DeprecationWarning -W default::FutureWarning

$(LOWEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	{ grep '^torch==' constraints.txt; sed -nE 's/^ *"([A-Za-z0-9-]+)>=([0-9.]+).*/\1==\2/p' pyproject.toml; \
		cat constraints.txt; } | awk -F == '!seen[$$1]++' > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[dev]' --constraint $(LOWEST)/constraints.txt
	@touch $@

clients: $(INSTALLED)  ## run every real client on the packaged zip (ARGS="--only label"); several GB
	$(BIN)/python tests/clients $(ARGS)

campaign: $(INSTALLED)  ## break it on purpose: bad inputs, killed trainings, fuzzed files (ARGS="--quick --only resume"); an hour
	env OMP_NUM_THREADS=1 $(BIN)/python tests/campaign $(ARGS)

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## correct style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

phantoms: $(INSTALLED)  ## make the phantoms that the shipped weights were trained on
	$(BIN)/python -c "from custom.data.datalist import ensure_phantom; ensure_phantom('bundle/data/phantom')"

train: $(INSTALLED)  ## train the three stages on phantoms, with DATA=list.json on real subjects and phantoms (ARGS="--max_epochs 2"); goes on where it stopped
	for stage in 'train_autoencoder autoencoder' 'train_spade spade' 'train diffusion'; do read -r config name <<< "$$stage"; \
		$(BIN)/python -m monai.bundle run training --config_file \
			"['bundle/configs/$$config.json'$(if $(DATA),$(comma)'bundle/configs/real_$$name.json')]" \
			--resume auto --output_dir '$(OUTPUT)' $(if $(DATA),--dataset_dir '$(DATA)') $(ARGS) || exit 1; done

evaluate: $(INSTALLED)  ## score the weights (or WEIGHTS=bundle/output/model.pt) on the held-out phantoms
	$(BIN)/python -m monai.bundle run evaluating --config_file bundle/configs/evaluate.json \
		$(if $(WEIGHTS),--ckpt_path '$(WEIGHTS)')

ablation: $(INSTALLED)  ## train and evaluate the ablations of Table 3 on phantoms (SHARE=0.6 of the epochs)
	$(BIN)/python -m custom ablation $(if $(SHARE),--share $(SHARE))

table1: $(INSTALLED)  ## train the rivals and this model with the same arithmetic, write Table 1 (ARGS="--budget 100"); hours
	$(BIN)/python -m custom table1 $(ARGS)

bench: $(INSTALLED)  ## measure speed and memory of every part beside MONAI's (ARGS="--preset small --size 64 64 64")
	$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove what the other targets made, but for environments and the weights
	rm -rf output bundle/output bundle/data build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
