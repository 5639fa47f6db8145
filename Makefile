# One vocabulary for people and CI. Needs Python >= 3.10 with its headers and a C compiler; everything else
# comes into .venv from PyPI.

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PIP := .venv/bin/python -m pip --disable-pip-version-check -q

NATIVE := $(shell find csrc bindings cmake -type f) CMakeLists.txt pyproject.toml pccl/__init__.py
C_OURS := $(shell find csrc tests/c -name '*.[ch]' -o -name '*.cpp')

.PHONY: help setup build test demo bench tidy asan sim fuzz stress wheel clean

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

## make test     all tests (ARGS='-k ring -x' goes to pytest)
test: build
	.venv/bin/python -m pytest $(ARGS)

## make demo     train a model in four processes that get killed, and see it go on
demo: build
	.venv/bin/python -m examples.digits.run $(ARGS)

## make bench    all-reduce on this machine
bench: build
	.venv/bin/pccl bench allreduce $(ARGS)

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

## make asan     the C drivers and the tests of the C core under AddressSanitizer and UBSan
asan: setup
	cmake -S . -B build/asan -G Ninja -DPCCL_BUILD_TESTING=ON -DPCCL_SANITIZE=ON
	cmake --build build/asan
	tests/run_asan.sh build/asan

## make sim      the two machines in the simulator, over many seeds
sim: build
	tests/run_later.sh sim tests/sim

## make fuzz     the decoders, fed with damaged input
fuzz: build
	tests/run_later.sh fuzz tests/fuzz

## make stress   processes that come, go, hang and die
stress: build
	tests/run_later.sh stress stress

## make wheel    dist/*.whl
wheel: .venv/.tools
	.venv/bin/python -m pip wheel -q --no-deps -w dist .

## make clean    remove everything that was built, .venv included
clean:
	rm -rf build dist .venv
