# The two commands of the README are `make demo` and `make test`; both do all the set-up.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# pip can read [dependency-groups] from 25.1 on; the version is bounded below for that.
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet

.PHONY: demo test test-slow test-hosts test-slurm fuzz test-gpu test-tensorrt-matrix check format golden parity tensorrt clean

demo: $(VENV)/.installed  ## generate text from the bundled checkpoint
	@$(BIN)/paddock demo

test: $(VENV)/.test  ## every test that needs no GPU; live parity where torch is installed
	@$(BIN)/python -m pytest -q tests/fuzz
	@$(BIN)/python -m pytest -q -m "not slow and not gpu" --ignore tests/fuzz

test-slow: $(VENV)/.test  ## the slow tests too
	@$(BIN)/python -m pytest -q tests/fuzz
	@$(BIN)/python -m pytest -q -m "not gpu" --ignore tests/fuzz

fuzz: $(VENV)/.test  ## other inputs than the tests' own, for longer: make fuzz EXAMPLES=20000
	@PADDOCK_FUZZ_EXAMPLES=$(or $(EXAMPLES),5000) $(BIN)/python -m pytest -q tests/fuzz

test-hosts: $(VENV)/.test  ## ranks on two hosts: network namespaces, by root or in a user namespace
	@$(BIN)/python -m pytest -q -m hosts

test-slurm: $(VENV)/.test  ## ranks that srun starts: by root, with Debian's slurm-wlm and munge
	@$(BIN)/python -m pytest -q -m slurm

test-gpu: $(VENV)/.gpu  ## the tests of the cuda engine, on a machine with an NVIDIA GPU
	@$(BIN)/python -m pytest -q -m gpu

test-tensorrt-matrix: $(VENV)/.test $(VENV)/.tensorrt  ## NVIDIA's compiler over every class of the zoo in every form: an hour and a half
	@$(BIN)/python -m pytest -q tests/engines/tensorrt/test_matrix.py

check: $(VENV)/.check  ## formatting, lint, types, import direction
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports

format: $(VENV)/.check  ## rewrite what `make check` would complain about
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

golden: $(VENV)/.test  ## write the golden files anew; look at what git says changed
	@$(BIN)/python -m tests.golden

parity: $(VENV)/.parity  ## install torch and transformers, so that `make test` compares with them live

tensorrt: $(VENV)/.tensorrt  ## install TensorRT for RTX, whose tests need no GPU

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.installed: pyproject.toml
	@echo "setting up $(VENV) (once; about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@$(PIP) --group test
	@touch $@

$(VENV)/.check: $(VENV)/.test
	@$(PIP) --group check
	@touch $@

$(VENV)/.parity: $(VENV)/.test
	@$(PIP) --group parity
	@touch $@

$(VENV)/.tensorrt: $(VENV)/.test
	@$(PIP) --group tensorrt
	@touch $@

$(VENV)/.gpu: $(VENV)/.test
	@$(PIP) --editable '.[cuda]'
	@touch $@
