# Every target makes the environment it needs in .venv and can be stopped at any moment: the next run goes on.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help book serve page test claims train trained models kernels bench gpu-test lint mutants check-book clean

PYTHON ?= python3
PORT ?= 8000
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install
DOTS := awk '/^Collecting/ { printf "."; fflush() } /^Installing collected/ { printf " installing"; fflush() } END { print "" }'
BUILD := PYTHONPATH=book/_ext:. $(PY) -m minattn_book.build
TRAINING := minattn/experiments/transformer/shakespeare.py
# Idle threads of BLAS would spin for 2^26 cycles beside our kernels; `import minattn` says so too, if it comes first.
export OPENBLAS_THREAD_TIMEOUT ?= 16
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

help: ## show this list
	@echo "minattn: attention from scratch, and the book that explains it.  Commands:"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'
	@echo "Next: make book"

# ---- environment: a stamp stands for a finished installation --------------------------------------------------------
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "minattn needs Python 3.11 or later.  Next: make $(MAKECMDGOALS) PYTHON=python3.12 (or the like)"; exit 1; }
	@echo "[environment] making .venv"
	@$(PY) -c 'import importlib.metadata as m, pip; assert m.files("pip")' 2> /dev/null || $(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.book: .venv/.made requirements.txt
	@echo "[environment] installing the library's and the book's packages (about a minute the first time)"
	@$(PIP) -r requirements.txt | $(DOTS)
	@touch $@

.venv/.dev: .venv/.book pyproject.toml
	@echo "[environment] installing the tools for tests, comparison with PyTorch among them (a few minutes the first time)"
	@$(PIP) -r requirements.txt -e '.[dev,compare]' | $(DOTS)
	@touch $@

# ---- the book -------------------------------------------------------------------------------------------------------
book: trained models kernels ## set up, train, execute and build everything, and open the book
	@$(BUILD) $(if $(CI),--no-open)

page: .venv/.book ## execute and build one page: make page PAGE=chapters/attention/index.md
	@$(BUILD) --page "$(or $(PAGE),$(error say which page: make page PAGE=chapters/attention/index.md))"

serve: ## serve the built book on http://localhost:8000 (PORT=... for another)
	@test -f _build/html/index.html || $(MAKE) --no-print-directory book
	@echo "Next: visit http://localhost:$(PORT) ; Ctrl-C stops."
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

check-book: .venv/.dev ## read every built page in a browser: errors, links, both themes, two widths
	@test -f _build/html/index.html || $(MAKE) --no-print-directory book
	@$(PY) -m pytest tests/book/test_browser.py -m browser
	@echo "Next: look at the pictures in _build/screenshots"

trained: .venv/.book
	@test ! -f $(TRAINING) || $(PY) -m $(subst /,.,$(TRAINING:.py=)) --if-missing

models: .venv/.book
	@$(PY) -m minattn.transformer.pretrained

kernels: .venv/.book
	@$(PY) -m minattn.kernels

train: .venv/.book ## train the transformer of the book afresh
	@$(PY) -m $(subst /,.,$(TRAINING:.py=))
	@echo "Next: make book"

# ---- the library ----------------------------------------------------------------------------------------------------
test: .venv/.dev ## run all tests; part of them: make test TESTS=tests/attention
	@$(ONE_THREAD) $(PY) -m pytest -n 2 -m "not browser" $(TESTS)
	@echo "Next: make book"

claims: .venv/.dev ## run the papers' findings in miniature on three seeds; one paper: make claims PAPER=65
	@$(ONE_THREAD) $(PY) -m minattn.experiments $(if $(PAPER),--paper $(PAPER))

bench: .venv/.dev ## measure every speed claim against its peer
	@for file in benchmarks/*.py; do echo "[bench] $$file"; $(PY) $$file; done
	@echo "Next: the figures are above, and as JSON beside each program"

gpu-test: .venv/.dev ## run the tests that need an NVIDIA GPU
	@if command -v nvidia-smi > /dev/null; then echo "[environment] CuPy"; $(PIP) -e '.[gpu]' | $(DOTS); fi
	@$(PY) -m pytest -m gpu || test $$? -eq 5
	@echo "Next: make bench"

lint: .venv/.dev ## style, types, and the rule that imports go downwards only
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports
	@echo "Next: make test"

mutants: .venv/.dev ## mutate one file and see whether its tests notice: make mutants FILE=minattn/attention/masks.py
	@$(ONE_THREAD) $(PY) .ci/mutants.py "$(or $(FILE),$(error say which file: make mutants FILE=minattn/...))" $(TESTS)

clean: ## remove what was built (not .venv)
	@rm -rf _build mutants build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@echo "Next: make book"
