# One vocabulary for people and CI. Needs Python >= 3.10 with its headers and a C compiler; everything else
# comes into .venv from PyPI.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PIP := .venv/bin/python -m pip --disable-pip-version-check -q

ASAN_SEEDS ?= 100
FUZZ_SECONDS ?= 20
FUZZ_INPUTS ?= 20000

NATIVE := $(shell find csrc bindings cmake -type f) CMakeLists.txt pyproject.toml pccl/__init__.py
C_OURS = $(shell find csrc tests -name '*.[ch]' -o -name '*.cpp')

SHELL := /bin/bash

.PHONY: help setup build test demo bench bench-table tidy format asan tsan sim sim-mutations fuzz stress stress-planted wheel clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make setup    create .venv with the package (editable) and all that development needs
setup: build/.installed

.venv/.tools: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install 'scikit-build-core>=0.11' 'cffi>=2.0' cmake ninja
	touch $@

build/.installed: .venv/.tools $(NATIVE)
	mkdir -p build
	$(PIP) install --no-build-isolation --config-settings=build-dir=build/editable -e '.[dev]'
	touch $@

## make build    the Python package, libpccl and the tests' library (build/)
build: build/.installed
	@test -f build/build.ninja || cmake -S . -B build -G Ninja -DPCCL_BUILD_TESTING=ON
	@cmake --build build

## make test     all tests (ARGS='-k ring -x' goes to pytest; ARGS='-m stress': those that take minutes)
test: build
	.venv/bin/python -m pytest $(ARGS)

## make demo     train a model in four processes that get killed, and see it go on
demo: build
	.venv/bin/python examples/digits/run.py $(ARGS)

## make bench    all-reduce on this machine
bench: build
	.venv/bin/pccl bench allreduce $(ARGS)

## make bench-table  measure the table of README.md, and write it there: some minutes, on a quiet machine
bench-table: build
	.venv/bin/python -m pccl.benchmarks.record $(ARGS) README.md

## make tidy     format, lint, types, and the C core with warnings as errors
tidy: setup
	ruff format --check .
	ruff check .
	mypy
	clang-format --dry-run -Werror $(C_OURS)
	cmake -S . -B build/werror -G Ninja -DPCCL_WERROR=ON -DPCCL_BUILD_TESTING=ON -DCMAKE_C_COMPILER=gcc
	cmake --build build/werror
	@if command -v clang >/dev/null; then \
	  set -ex; \
	  cmake -S . -B build/werror-clang -G Ninja -DPCCL_WERROR=ON -DPCCL_BUILD_TESTING=ON \
	    -DCMAKE_C_COMPILER=clang; \
	  cmake --build build/werror-clang; \
	else echo "tidy: no clang here: its warnings were not checked"; fi

## make format   what tidy would ask for, where a tool can do it
format: setup
	ruff format .
	ruff check --fix .
	clang-format -i $(C_OURS)

## make asan     C drivers, simulator, tests of the C core and of Python's memory under AddressSanitizer and UBSan
ASAN := build/asan/testing
UNDER_ASAN = LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0
asan: setup
	cmake -S . -B build/asan -G Ninja -DPCCL_BUILD_TESTING=ON -DPCCL_SANITIZE=address,undefined
	cmake --build build/asan
	@set -e; for driver in $(ASAN)/drivers/*; do echo "asan: $$driver"; $$driver; done
	.venv/bin/python -m tests.sim --sanitize --seed 1 --count $(ASAN_SEEDS)
	@# Python itself is not built under the sanitizers: their library comes first, and its leaks are not ours.
	$(UNDER_ASAN) PCCL_TESTING_LIBRARY=$(CURDIR)/$(ASAN)/libpccl_testing.so \
	  .venv/bin/python -m pytest -q $$(grep -lE '^(from|import) native' tests/test_*.py)
	$(PIP) install --no-build-isolation --no-deps --upgrade --target build/asan/package \
	  --config-settings=build-dir=build/asan/python \
	  --config-settings=cmake.define.PCCL_SANITIZE=address,undefined .
	@# -S: without the editable package, which would come before this one.
	$(UNDER_ASAN) PYTHONPATH=build/asan/package:$$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  .venv/bin/python -S .venv/bin/pytest -q --capture=sys tests/test_python_memory.py tests/test_python_operations.py

## make tsan     the C drivers under ThreadSanitizer
tsan: setup
	cmake -S . -B build/tsan -G Ninja -DPCCL_BUILD_TESTING=ON -DPCCL_SANITIZE=thread
	cmake --build build/tsan
	@set -e; for driver in build/tsan/testing/drivers/*; do echo "tsan: $$driver"; $$driver; done

## make sim      both machines over a virtual network: seeds and scenarios (ARGS='--seed 7 --trace')
sim: setup
	.venv/bin/python -m tests.sim $(ARGS)

## make sim-mutations  faults planted in the machines: after how many seeds is each caught?
sim-mutations: setup
	.venv/bin/python -m tests.sim --mutations

## make fuzz     machines and decoders on hostile input, FUZZ_SECONDS=20 each; with libFuzzer where clang is
fuzz: setup
	@set -e; if command -v clang >/dev/null; then \
	  cmake -S . -B build/fuzz -G Ninja -DPCCL_BUILD_TESTING=ON -DPCCL_SANITIZE=address,undefined \
	    -DPCCL_LIBFUZZER=ON -DCMAKE_C_COMPILER=clang; \
	  cmake --build build/fuzz; \
	  for target in build/fuzz/testing/fuzz/fuzz_*; do \
	    name=$${target##*/fuzz_}; echo "fuzz: $$name"; mkdir -p build/corpus/$$name; \
	    seeds=tests/fuzz/corpus/$$name; \
	    if [ -f $$seeds.zip ]; then python -m zipfile -e $$seeds.zip build/corpus/$$name; fi; \
	    $$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 -verbosity=0 -print_final_stats=1 \
	      -artifact_prefix=build/corpus/$$name- build/corpus/$$name $$([ -d $$seeds ] && echo $$seeds); \
	  done; \
	else \
	  echo "fuzz: no clang here, so random inputs take the place of libFuzzer"; \
	  cmake -S . -B build/asan -G Ninja -DPCCL_BUILD_TESTING=ON -DPCCL_SANITIZE=address,undefined; \
	  cmake --build build/asan; \
	  for target in $(ASAN)/fuzz/fuzz_*; do \
	    echo "fuzz: $$target"; $$target -n $(FUZZ_INPUTS) -s $$RANDOM$$RANDOM; \
	  done; \
	fi

## make stress   peers of this machine that are killed, stopped, cut off (ARGS='--minutes 60 --peers 10')
stress: build
	.venv/bin/pccl stress $(ARGS)

## make stress-planted  defects planted in the core: is each caught by two minutes of stress?
stress-planted: build
	.venv/bin/python -m tests.planted $(ARGS)

## make wheel    dist/*.whl
wheel: .venv/.tools
	.venv/bin/python -m pip wheel -q --no-deps -w dist .

## make clean    remove everything that was built, .venv included
clean:
	rm -rf build dist .venv
