# The course needs Python 3.11 or newer and make; everything else goes into .venv.
#   make lab     JupyterLab on the course's first page
#   make test    linter, every notebook, unit tests
#   make quick   linter and the tests that take little: under two minutes
# Another interpreter:  make lab PYTHON=python3.12

PYTHON ?= python3
JOBS   ?= 2
# Extra options, for example  make unit PYTEST="-k ddim"
PYTEST ?=

VENV := .venv
PY   := $(VENV)/bin/python
# A stamp says what .venv holds. It is older than its requirements only when they have changed,
# so that a second run installs nothing and needs no network.
LAB  := $(VENV)/.installed-lab
DEV  := $(VENV)/.installed-dev
SITE := $(VENV)/.installed-site
NEEDS := pyproject.toml constraints.txt

# Colab's versions have a virtual environment of their own.
COLAB        := .venv-colab
COLAB_PYTHON ?= $(PYTHON)
# What has run once already is run again for some chapters only: all, a quarter of them (0 to 3), or
# the quarter that the commit chooses. This is about exercises run as notebooks, explorers in the
# browser, and notebooks with Colab's versions.
QUARTER      ?= all
# A quarter whose notebooks and tests of versions  make test  leaves out: .ci/run has them run with
# Colab's versions.
WITHOUT      ?=
# No further notebook begins after this time, in seconds since 1970 (.ci/until.py).
UNTIL        ?=

# The TPU's compiler, of the version that this jax names, has one too: 1.3 GB.
TPU     := .venv-tpu
# Start no further compilation after so many minutes; the next run goes on.
MINUTES ?= 600
# For links from the site to Colab and to the sources:  make site REPOSITORY=owner/name
REPOSITORY ?=

# Runs a command and prints its wall time:  $(PHASE) NAME COMMAND
PHASE  := .ci/phase
# Each phase's line, for the end of  make test.
TIMES  := $(VENV)/.times
# XLA reads NPROC, its number of threads. More threads than cores wait for each other and cost
# time; with one for each of two cores, a training step takes 7 % less (docs/testing.md).
CORES  := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
SHARED := NPROC=$(shell expr $(CORES) / $(JOBS) 2>/dev/null | grep -v '^0$$' || echo 1)
# The order of the notebooks is that of .ci/quarter.py.
NBVAL  := pytest -p until --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
  -n $(JOBS) --dist loadscope --no-loadscope-reorder
ENDING := PYTHONPATH=.ci UNTIL=$(UNTIL)

.PHONY: help lab test quick lint unit check-notebooks colab colab-environment tpu notebooks site chapter clean
.NOTPARALLEL:

help:
	@echo "make lab        install what is needed into .venv and open the course in JupyterLab"
	@echo "make test       lint, check-notebooks, unit: all that must pass      QUARTER=all, commit, 0 .. 3"
	@echo "make quick      lint, and the unit tests that take little: for every change"
	@echo "make lint       ruff check and ruff format --check"
	@echo "make unit       unit tests                      make unit PYTEST='-k ddim'"
	@echo "make check-notebooks   run every committed notebook from top to bottom"
	@echo "make colab      what depends on versions, with those of Google Colab   QUARTER=0 .. 3"
	@echo "make tpu        compile the course's programs for TPUs, without one: hours   MINUTES=30"
	@echo "make notebooks  write and execute every *.ipynb from its source/*.py, and exercises/"
	@echo "make site       the course as static pages, into build/site   REPOSITORY=owner/name"
	@echo "make chapter    lay out a new chapter           make chapter N=09 NAME=score_sdes TITLE='Score matching and SDEs'"
	@echo "make clean      remove .venv and everything else that can be made again"
	@echo "Another Python: make lab PYTHON=python3.12"

lab: $(LAB)
	@$(PY) -m diffusion_course lab

# Notebooks before unit tests: the explorers' browser tests then find their programs compiled.
test: QUARTER := commit
test: $(DEV)
	@rm -f $(TIMES)
	@PHASES=$(TIMES) $(MAKE) --no-print-directory QUARTER=$(QUARTER) lint check-notebooks unit; status=$$?; \
	  echo; cat $(TIMES); [ -z "$$PHASES" ] || sed 's/^/  /' $(TIMES) >>"$$PHASES"; exit $$status

quick: $(DEV)
	@$(PHASE) "lint and quick tests" $(MAKE) --no-print-directory lint unit PYTEST="--quick -q $(PYTEST)"

lint: $(DEV)
	@$(PHASE) lint sh -c "$(PY) -m ruff check . && $(PY) -m ruff format --check ."

# A file's tests share a worker: the browser tests share one JupyterLab. tests/conftest.py puts the
# longest files first.
unit: $(DEV)
	@$(SHARED) $(PHASE) "unit tests" $(PY) -m pytest tests -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  --quarter $(QUARTER) $(WITHOUT:%=--without %) $(PYTEST)

check-notebooks: $(DEV)
	@$(SHARED) $(ENDING) $(PHASE) notebooks $(PY) -m $(NBVAL) \
	  $$($(PY) .ci/quarter.py $(QUARTER) --every-chapter $(WITHOUT:%=--without %))

colab: $(COLAB)/.installed
	@$(SHARED) $(PHASE) "tests as on Colab" $(COLAB)/bin/python -m pytest tests --versions -n $(JOBS) \
	  --dist loadfile --no-loadscope-reorder --quarter $(QUARTER)
	@$(SHARED) $(ENDING) $(PHASE) "notebooks as on Colab" $(COLAB)/bin/python -m $(NBVAL) \
	  $$($(COLAB)/bin/python .ci/quarter.py $(QUARTER))

# Without the course itself, which another make may be installing from this folder.
colab-environment: $(COLAB)/.requirements

$(COLAB)/.installed: $(COLAB)/.requirements
	@$(COLAB)/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(COLAB)/.requirements: pyproject.toml .ci/colab-constraints.txt
	"$(COLAB_PYTHON)" -m venv --clear $(COLAB)
	@$(COLAB)/bin/python .ci/requirements.py dev >$(COLAB)/requirements.txt
	@$(PHASE) "install for Colab" $(COLAB)/bin/python -m pip install -q --disable-pip-version-check \
	  -c .ci/colab-constraints.txt -r $(COLAB)/requirements.txt
	@touch $@

tpu: $(TPU)/.installed
	@$(TPU)/bin/python benchmarks/tpu_compile.py --compile --minutes $(MINUTES)

$(TPU)/.installed: pyproject.toml constraints.txt
	"$(PYTHON)" -m venv --clear $(TPU)
	@$(PHASE) "install for TPUs" $(TPU)/bin/python -m pip install -q --disable-pip-version-check \
	  -c constraints.txt -e . "jax[tpu]"
	@touch $@

notebooks: $(DEV)
	$(PY) notebooks/chapters.py
	$(PY) notebooks/build.py
	$(PY) notebooks/build.py --folder solutions
	$(PY) -m diffusion_course assign
	$(PY) notebooks/reading.py
	$(PY) notebooks/ledger.py
	$(PY) notebooks/lessons.py

site: $(SITE)
	@$(PHASE) site $(PY) site/build.py $(REPOSITORY:%=--repository %)

# The shell gets N, NAME and TITLE as they are, whatever characters they hold.
chapter: export CHAPTER_N := $(value N)
chapter: export CHAPTER_NAME := $(value NAME)
chapter: export CHAPTER_TITLE := $(value TITLE)
chapter: $(DEV)
	@$(PY) notebooks/new_chapter.py "$$CHAPTER_N" "$$CHAPTER_NAME" "$$CHAPTER_TITLE"

$(LAB): $(VENV)/.created $(NEEDS)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[lab]"
	@touch $@

$(SITE): $(VENV)/.created $(NEEDS)
	@$(PHASE) install $(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[site]"
	@touch $@

# The development install holds all that the lab and the site need, so it counts for them too.
$(DEV): $(VENV)/.created $(NEEDS)
	@$(PHASE) install $(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev,site]"
	@touch $(LAB) $(SITE) $@

$(VENV)/.created:
	@found=$$("$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null); \
	remedy="Install Python 3.11 or newer, or name one: make $(or $(firstword $(MAKECMDGOALS)),lab) PYTHON=python3.12"; \
	if [ -z "$$found" ]; then \
	  echo "$(PYTHON) does not run. $$remedy" >&2; exit 2; fi; \
	if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "The course needs Python 3.11 or newer; $(PYTHON) is Python $$found. $$remedy" >&2; exit 2; fi; \
	if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$(PYTHON) (Python $$found) cannot make virtual environments." \
	    "Install its venv module (Debian and Ubuntu: apt install python3-venv)." >&2; exit 2; fi
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) $(COLAB) $(TPU) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis \
	  .jupyter-state runs notebooks/.ipynb_checkpoints
	find diffusion_course tests notebooks benchmarks solutions -name __pycache__ -type d -prune -exec rm -rf {} +
