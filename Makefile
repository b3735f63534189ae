# Everything from a bare checkout: `make demo` and `make test` create .venv and install what they need.
#
# Variables, given as `make demo NAME=value`:
#   PYTHON       the interpreter that creates .venv (3.10 or later)
#   TORCH_INDEX  the package index that torch, and only torch, is taken from; empty: pip's default.
#                On Linux the default index holds the CUDA build, right for an NVIDIA GPU. On a machine
#                without one it works too but downloads 2.9 GB: name pytorch.org's CPU wheel index here
#                for the small CPU build. To change the build later: `make clean`, then give the new index.
#   DEMO_OUT     the file that `make demo` writes
#   JOBS         processes that the tests' files are shared out to (default 2); each runs one thread
#   BUILD_CPU    auto, 0 or 1 (in the environment): whether csrc/cpu is compiled; see setup.py
#   BUILD_CUDA   likewise for csrc/cuda, which needs nvcc; HQTVAE_CUDA_ARCHS names the architectures

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_OUT ?= demo.png
JOBS ?= 2
MARKS := not slow and not gpu

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# --no-compile: pip compiles 10,000 files one after the other, compileall on all cores.
COMPILE := $(BIN)/python -m compileall -q -x '/tests?/|/testing/_internal/|/site-packages/(pip|setuptools|mypyc?)/'
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all pytest lint ruff mypy csrc-check format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## create .venv and install the package with its test tools (pinned by constraints.txt)

# torch goes first: from its own index if one is named, and so that setup.py, built without isolation, sees it.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.py csrc/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or later is needed. Name one: make PYTHON=python3.11 ..."; exit 1; }
	@echo "==> $(VENV): creating, with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "Python's venv module is needed; on Debian: apt-get install python3-venv"; exit 1; }
	@if nvidia-smi >/dev/null 2>&1; then \
		echo "==> $(VENV): installing torch (NVIDIA GPU found)"; \
	else \
		echo "==> $(VENV): installing torch$(if $(TORCH_INDEX),, (no NVIDIA GPU found: 2.9 GB; with TORCH_INDEX, the CPU build: see README))"; \
	fi
	@$(PIP_INSTALL) setuptools
	@$(PIP_INSTALL) $(if $(TORCH_INDEX),--no-deps --index-url "$(TORCH_INDEX)") torch
	@echo "==> $(VENV): installing hqtvae_fast and its test tools, compiling"
	@$(COMPILE) -j 1 $(VENV)/lib >/dev/null & $(PIP_INSTALL) --no-build-isolation -e '.[test]' && wait
	@$(COMPILE) -j 0 $(VENV)/lib >/dev/null || true  # some files are no Python
	@$(BIN)/python -c 'import torch; print(f"==> $(VENV): ready, torch {torch.__version__}, CUDA available:", torch.cuda.is_available())'
	@if nvidia-smi >/dev/null 2>&1 && ! $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then \
		echo "==> WARNING: this machine has an NVIDIA GPU, but the torch installed is a CPU build"; \
	fi
	@touch $@

# "name, style" as the model was trained: 3d (Fluent), flat (Twemoji), shaded (Noto).
DEMO_PROMPTS := \
	--prompt "tiger face, 3d" --prompt "red apple, flat" --prompt "rocket, shaded" \
	--prompt "sunflower, 3d" --prompt "pizza, flat" --prompt "whale, shaded" \
	--prompt "owl, 3d" --prompt "red heart, flat" --prompt "guitar, shaded" \
	--prompt "grinning face, 3d" --prompt "octopus, flat" --prompt "penguin, shaded"

demo: $(STAMP) ## draw a dozen prompts with the embedded model, into demo.png
	@echo "==> demo: twelve prompts, drawn by the small model that comes with the package"
	@$(BIN)/hqtvae sample demo $(DEMO_PROMPTS) --temperature 0.5 --seed 0 \
		--columns 6 --scale 3 --captions --out $(DEMO_OUT)
	@echo '==> next: $(BIN)/hqtvae sample demo --prompt "snowman, 3d" --prompt "house, shaded" --prompt strawberry --temperature 0.5 --captions --scale 3 --out next.png'

csrc-check: $(STAMP) ## compile csrc/cuda (registers, shared memory, no spills), load it, test its device functions
	@echo "==> csrc-check"
	@$(BIN)/python csrc/check.py

# mypy takes one process and half a minute, which is a second core's time.
test: ruff ## ruff, then mypy and the tests that need neither a GPU nor much time
	@$(MAKE) --no-print-directory -j 2 mypy pytest

test-all: ruff ## ruff, then mypy and all tests that need no GPU, the slow ones included
	@$(MAKE) --no-print-directory -j 2 mypy pytest MARKS="not gpu"

# benchmarks/ once each, untimed.
pytest: $(STAMP)
	@echo "==> pytest ($(MARKS))"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --durations=20 -m "$(MARKS)" --benchmark-disable tests benchmarks

lint: ruff mypy ## ruff check, ruff format --check and mypy

ruff: $(STAMP)
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .

mypy: $(STAMP)
	@echo "==> mypy"
	@$(BIN)/mypy

format: $(STAMP) ## let ruff sort the imports, apply its safe fixes and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove .venv, caches, build products and the demo's picture
	rm -rf $(VENV) build dist hqtvae_fast/_cpu*.so hqtvae_fast/_C*.so ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(DEMO_OUT)
	find . -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +
