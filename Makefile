# Every target sets up .venv the first time: Python >= 3.10 is all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CPP := $(wildcard $(foreach suffix,c cpp h cu cuh,csrc/*.$(suffix) csrc/*/*.$(suffix) tests/*/*.$(suffix) tools/*/*/*.$(suffix)))

# Each process keeps to neighbouring tests, which share what they compiled, until it has none left.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup test test-thorough lint format demo bench report gpu-bundle docs build wheel test-wheel clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with the pinned development environment and this package (6 GB; minutes)

# The CUDA kernels, where there is an nvcc: for the GPUs of this machine, or one architecture; a wheel has them all.
$(READY): export TORCH_CUDA_ARCH_LIST ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null),9.0)
# Objects are kept, so that a wheel of what is installed compiles nothing again.
$(READY) build: export DENSENET_FAST_BUILD_OBJECTS := $(CURDIR)/build/objects
$(READY): requirements-dev.txt pyproject.toml setup.py $(wildcard tools/library/*.py)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and "Python is too old: got %d.%d, expected 3.10 or newer; choose one: make PYTHON=python3.12 ..." % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "No virtual environments: got a Python without ensurepip, expected one with it; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing the development environment into $(VENV): 6 GB of disk, of which PyTorch is 2 GB to download ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements-dev.txt
	@echo "Compiling the kernels: two minutes of processor time, with an nvcc some minutes more ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(BIN)/python -m tests.cuda.device || echo "The CUDA kernels could not be compiled to PTX: their tests will fail, all else is set up." >&2
	@touch $@

test: $(READY) ## run the tests, in as many processes as there are cores, four at most (about 20 minutes on two)
	@echo "Running the tests: about 20 minutes on two cores ..."
	$(BIN)/python -m pytest $(PARALLEL)

test-thorough: $(READY) ## run also the rows of tests that differ from others in little (about 40 minutes on two)
	@echo "Running all tests: about 40 minutes on two cores ..."
	$(BIN)/python -m pytest $(PARALLEL) --thorough

lint: $(READY) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(READY) ## format, and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

demo: $(READY) ## train on real scans and compare with stock layers (a few minutes)
	@echo "Training a DenseNet on scikit-learn's digits, then comparing it with stock layers: a few minutes, nothing to download ..."
	$(BIN)/python -m benchmarks.digits

bench: $(READY) ## speed and memory against every peer; options: make bench BENCH="--model densenet201 --peers all"
	$(BIN)/python -m pytest benchmarks $(BENCH)

report: $(READY) ## tables and pictures from the results of bench, into README.md and docs/
	$(BIN)/python -m benchmarks.report

gpu-bundle: $(READY) ## the compiled library to take to a machine with a GPU and without a network (docs/on_a_gpu.md)
	$(BIN)/python -m benchmarks.gpu.bundle

docs: $(READY) ## build the documentation site into build/site, without the network; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

build: $(READY) ## build the sdist and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

wheel: ## name the wheel of `make build` for the oldest glibc that it runs on; libtorch is excluded
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir build/wheel dist/*.whl
	rm dist/*.whl && mv build/wheel/*.whl dist/

# The tests that need nothing of the source tree, in a directory that has the wheel's package instead of it.
WHEEL := build/test-wheel
WHEEL_TESTS := tests --ignore tests/test_build.py --ignore tests/installing --ignore tests/test_readme.py --ignore tests/benchmarks
test-wheel: ## run the tests on the wheel of `make build`, the source tree hidden
	rm -rf $(WHEEL)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(WHEEL) dist/*.whl
	cp -r tests tools benchmarks pyproject.toml $(WHEEL)
	cd $(WHEEL) && PYTHON=$$OLDPWD/$(BIN)/python && \
	$$PYTHON -c "import densenet_fast; assert '$(WHEEL)' in densenet_fast.__file__, densenet_fast.__file__" && \
	$$PYTHON -m pytest $(PARALLEL) $(WHEEL_TESTS)

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info densenet_fast/*.so benchmarks/out .benchmarks .pytest_cache .mypy_cache .ruff_cache
