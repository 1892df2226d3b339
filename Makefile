# `make pretrain` and `make test` need Python >= 3.11 and a C++ compiler, nothing else.

PYTHON ?= python3
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip
# The repository's `kernels/` folder must never shadow the PyPI package of that name.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Importing torch and transformers from source takes five times as long as from their bytecode.
export PYTHONDONTWRITEBYTECODE :=

CUDA_ARCHITECTURES := 80 90 100
CPP = $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/*.cpp' 'tests/*.c')
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/* csrc/*/* csrc/*/*/*)

.PHONY: help setup pretrain test test-libraries lint check-format format hooks check-cuda check-sanitize check-sanitize-all check-threads check-sdist check-crash fuzz docs bench report bench-compare kernel-report check-triton wheel test-versions test-transformers check-cpus clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile -c constraints.txt torch ninja numpy setuptools wheel
	$(PIP) install --quiet --no-compile -c constraints.txt --no-build-isolation -e '.[train]'
	touch $@

# The extras alone: `-e .[test]` would build the extension a second time. That of `make
# test-libraries` (True), or all others.
extras = $(VENV)/bin/python -c 'from importlib.metadata import requires; print(*(r.split(";")[0] for r in requires("spanbert-fast") if "extra ==" in r and ("libraries" in r) is $(1)), sep="\n")'

$(VENV)/installed-test: $(VENV)/installed
	$(call extras,False) > $(VENV)/test-requirements.txt
	$(PIP) install --quiet --no-compile -c constraints.txt -r $(VENV)/test-requirements.txt
	touch $@

setup: $(VENV)/installed-test  ## all that work on the code needs: tests, linters, documentation

lint: check-format  ## ruff, clang-format and mypy; changes nothing
	$(VENV)/bin/python -m mypy

check-format: $(VENV)/installed-test  ## ruff and clang-format alone
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/installed-test  ## write Python and C++ in the house's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

hooks: $(VENV)/installed-test  ## have git run the checks of `make lint` before each commit
	$(VENV)/bin/pre-commit install

# Kernels are compiled by the newest Triton, which is installed, and by that of torch 2.11: another
# release may need more registers.
OTHER_TRITON := $(if $(filter Linux,$(shell uname)),build/triton-3.6.0)

build/triton-%: | $(VENV)/installed
	$(PIP) install --quiet --no-deps --no-compile --target $@ triton==$* || { rm -rf $@; exit 1; }

pretrain: $(VENV)/installed  ## pre-train a small SpanBERT on the embedded corpus, into runs/first
	$(VENV)/bin/spanbert-fast pretrain --output-dir runs/first --overwrite --max-minutes 2

# A process for each core with one thread: the tests are many and small, and OpenMP's threads wait by
# spinning. Neighbours stay together as far as they can: they share what their file sets up.
test: $(VENV)/installed-test  ## the whole test suite
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal --durations 15

test-libraries: $(VENV)/installed-test  ## accelerate() inside opacus, captum, PEFT, sentence-transformers
	$(call extras,True) > $(VENV)/libraries-requirements.txt
	$(PIP) install --quiet --no-compile -c constraints.txt -r $(VENV)/libraries-requirements.txt
	OMP_NUM_THREADS=1 SPANBERT_FAST_TEST_LIBRARIES=1 $(VENV)/bin/python -m pytest tests/test_libraries.py tests/test_families_libraries.py tests/test_accelerate_wrappers.py

test-all: test check-triton check-sanitize-all check-threads check-crash check-sdist check-cpus fuzz test-versions  ## all of it, for hours

docs: $(VENV)/installed-test  ## the documentation site, into build/docs; every warning is an error
	$(VENV)/bin/python -m sphinx -q -W --keep-going -b html docs build/docs

bench: $(VENV)/installed-test  ## measure what this CPU can in ten minutes, into benchmarks/results
	$(VENV)/bin/python benchmarks/run.py

report: $(VENV)/installed-test  ## benchmarks/results/REPORT.md and its plots, from the result files
	$(VENV)/bin/python benchmarks/report.py

bench-compare: $(VENV)/installed-test  ## is an op slower than at BASE=<commit or results file>?
	$(VENV)/bin/python benchmarks/compare.py $(BASE)

kernel-report: $(VENV)/installed-test $(OTHER_TRITON)  ## registers, shared memory, spills of each Triton kernel; no GPU
	$(VENV)/bin/python benchmarks/kernel_report.py
	test -z "$(OTHER_TRITON)" || PYTHONPATH=$(OTHER_TRITON) TRITON_CACHE_DIR=$(OTHER_TRITON)/cache $(VENV)/bin/python benchmarks/kernel_report.py

check-triton: $(VENV)/installed-test $(OTHER_TRITON)  ## the test of compiled kernels beside torch 2.11's Triton
	OTHER_TRITON=$(OTHER_TRITON) $(VENV)/bin/python -m pytest -q tests/test_compiled_kernels.py -k triton-3

wheel: $(VENV)/installed  ## manylinux wheels for each Python at hand, into dist
	$(VENV)/bin/python tools/wheels.py

NVCC ?= nvcc

check-cuda:  ## compile the CUDA sources with nvcc for every architecture; needs no GPU
	mkdir -p build/cuda
	set -e; for source in csrc/cuda/*.cu; do for architecture in $(CUDA_ARCHITECTURES); do \
	  $(NVCC) -std=c++20 -O3 -Icsrc -arch=sm_$$architecture -c $$source \
	    -o build/cuda/$$(basename $$source .cu).sm_$$architecture.o; \
	done; done

test-versions: $(VENV)/installed-test  ## the tests beside the oldest and newest torch and transformers
	$(VENV)/bin/python tools/versions.py

test-transformers: $(VENV)/installed-test  ## the tests of models beside the oldest transformers
	$(VENV)/bin/python tools/versions.py --transformers-only --transformers 5.17.0 --tests accelerate models

check-cpus: $(VENV)/installed  ## every op on CPUs that this one is not, under qemu-user
	$(VENV)/bin/python tools/check_cpus.py

check-sanitize: $(VENV)/installed-test  ## the C++ under the address and undefined-behaviour sanitizers
	PYTHONPATH=tests $(VENV)/bin/python -m hostile.sanitize

check-sanitize-all: $(VENV)/installed-test  ## the same with all op tests, and 20,000 hostile calls
	PYTHONPATH=tests $(VENV)/bin/python -m hostile.sanitize --all --calls 5000

check-threads: $(VENV)/installed-test  ## the parallel loops under the thread sanitizer, 4 threads
	PYTHONPATH=tests $(VENV)/bin/python -m hostile.races

check-sdist: $(VENV)/installed-test  ## build the CPU part from the source distribution, and try it
	SPANBERT_FAST_TEST_SDIST=1 $(VENV)/bin/python -m pytest -q tests/test_sdist.py

KILLS ?= 20

check-crash: $(VENV)/installed-test  ## KILLS kill -9, signals, full disks, damaged files; go on, compare
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests $(VENV)/bin/python -m crash --kills $(KILLS)

SECONDS ?= 600

fuzz: $(VENV)/installed-test  ## spoilt files of every kind for every reader, SECONDS long
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(VENV)/bin/python -m fuzz --seconds $(SECONDS)

clean:  ## remove the environment, builds and runs
	rm -rf $(VENV) build *.egg-info runs spanbert_fast/*.so
