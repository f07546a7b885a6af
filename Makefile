# Two commands do everything, each from a fresh clone:  make run   make test
# They need Python 3.11 or newer, git and make. `make help` lists the rest.

# The first of these that is installed. Another one: make PYTHON=/path/to/python3.12 run
PYTHON ?= $(shell unset PYTHONHOME PYTHONPATH; for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := .venv/bin/python
WORKSHOP := $(PY) -m workshop_lib
ARGS ?=
# For targets that install nothing: is .venv usable? If not, say so.
INSTALLED := { $(PY) -c 'import workshop_lib' 2>/dev/null || { echo "Nothing is installed in .venv; the local engines, if any run, end by themselves. 'make venv' installs."; false; }; }

# PYTHONPATH, PYTHONHOME and the like are meant for other programs.
unexport $(filter PYTHON%,$(.VARIABLES))

.PHONY: run test pytest benchmarks browser soak templates site lab check stop reset lint form format clean help venv

run: venv  ## the main job: every notebook, headless; then open results/latest/index.html
	@$(WORKSHOP) run $(ARGS)

test: venv  ## format, lint, types, and every test, the notebooks included
	@$(MAKE) --no-print-directory -j2 lint pytest

# Runs beside lint. The makes that tests start must not inherit this one's variables.
pytest:
	@unset MAKEFLAGS MFLAGS MAKELEVEL; $(PY) -m pytest $(ARGS)

benchmarks: venv  ## the speed goals, as ratios to others measured at the same time; a minute
	@$(PY) -m pytest -n 0 tests/benchmarks/bench_*.py $(ARGS)

soak: venv  ## everything at once for ten minutes: does anything grow, fail, or get lost?
	@$(PY) scripts/soak.py $(ARGS)

browser: venv  ## every notebook of the course in JupyterLab in Chromium; screenshots in build/screenshots
	@$(PY) -c 'import playwright' 2>/dev/null || $(PY) -m pip install -q -c constraints.txt -e '.[browser]'
	@$(PY) -m pytest -n 0 tests/browser/every_notebook.py $(ARGS)

site: venv  ## the course as executed, and the docs, as a site in build/site/html
	@$(PY) -c 'import myst_nb' 2>/dev/null || $(PY) -m pip install -q -c constraints.txt -e '.[site]'
	@$(PY) scripts/build_site.py $(ARGS)

templates: venv  ## check the CloudFormation templates with a security linter, in its own environment
	@test -x build/checkov/bin/checkov || { $(PY) -m venv build/checkov && build/checkov/bin/pip install --quiet checkov==3.3.30; }
	@build/checkov/bin/checkov --directory cloudformation --framework cloudformation --skip-download --compact --quiet

lab: venv  ## JupyterLab on the notebooks, with the engines running
	@$(WORKSHOP) lab $(ARGS)

check: venv  ## is everything reachable?
	@$(WORKSHOP) check $(ARGS)

stop:  ## stop the local engines
	@$(INSTALLED) || exit 0; $(WORKSHOP) stop

reset:  ## delete the local engines' data, and this workshop's part of services that you configured
	@$(INSTALLED) || exit 0; $(WORKSHOP) reset $(ARGS)

lint: venv  ## format, lint and types only
	@$(PY) -m ruff format --check --quiet . || { echo "Not formatted. 'make format' does it."; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy

form: venv  ## the notebooks' form only: no outputs, literals as parameters, alt text for every picture
	@$(PY) -m pytest -n 0 tests/notebooks/test_structure.py $(ARGS)

format: venv  ## put the code into the project's format
	@$(PY) -m ruff check --fix --quiet --select I .
	@$(PY) -m ruff format --quiet .

clean:  ## stop the engines, delete their data and the environment; results/ stays
	@if $(INSTALLED); then $(WORKSHOP) reset --yes --local; fi
	@rm -rf .venv .venv.lock build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

venv:  ## .venv with all packages; the targets that need it do this by themselves
	@command -v "$(PYTHON)" >/dev/null || { echo "No Python 3.11 or newer was found$(if $(PYTHON), as '$(PYTHON)'). Install one, or name it: make PYTHON=/path/to/python3 run" >&2; exit 1; }
	@"$(PYTHON)" scripts/bootstrap.py
