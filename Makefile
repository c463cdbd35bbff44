# The two commands of the README are `make ablation` and `make test`. Each makes the environment
# it needs on first use, and again only when the files under requirements/ or setup.py change.
#
# There are environments of their own, so that what the experiment runs on never depends on whether
# the tests were run before: .venv is small (no TensorFlow), .venv-test adds the test tools,
# notebooks and TensorFlow (for the TensorBoard writer's tests), .venv-docs what makes the site.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help ablation test docs lint lock clean

# The first of these that is a usable Python is taken; PYTHON=/path/to/python names one.
PYTHON ?= python3 python3.12 python3.11 python3.13
# Arguments for the script behind `make ablation`, or for pytest behind `make test`.
ARGS ?=
# Test processes; give more where there are more than two cores.
JOBS ?= 2

USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
FIND_PYTHON := for p in $(PYTHON); do "$$p" -c '$(USABLE)' 2>/dev/null && echo "$$p" && break; done
NO_PYTHON := The pinned environments need Python 3.11, 3.12 or 3.13 with venv, which none of \
"$(PYTHON)" is; install one and name it: make PYTHON=/path/to/python3.11

# $(call make-env,FOLDER,REQUIREMENTS): the stamp comes last, so an interrupted run starts afresh.
define make-env
@python=$$($(FIND_PYTHON)); \
if [ -z "$$python" ]; then echo '$(NO_PYTHON)' >&2; exit 1; fi; \
echo "Making $(1) with $$("$$python" --version) from $(2): 1 to 3 minutes, once."; \
rm -rf $(1) && "$$python" -m venv $(1) \
&& $(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2) \
&& $(1)/bin/python -m pip install --quiet --disable-pip-version-check \
   --no-deps --no-build-isolation --editable . \
&& touch $@
endef

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

ablation: .venv/.made  ## learned schedule against the fixed ones on digits; writes report.html
	.venv/bin/python experiments/learned_vs_cosine.py $(ARGS)

test: lint  ## ruff, then the whole test suite on the CPU
	JAX_PLATFORMS=cpu .venv-test/bin/python -m pytest -n $(JOBS) --dist loadfile \
	  --no-loadscope-reorder $(ARGS)

docs: .venv-docs/.made  ## the documentation's site, in build/site; warnings are errors
	JAX_PLATFORMS=cpu NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build $(ARGS)
	@echo "open build/site/index.html"

lint: .venv-test/.made  ## ruff alone
	.venv-test/bin/ruff check .

lock:  ## find new pins for requirements/*.txt from setup.py and base.in (needs uv)
	$(COMPILE) --output-file requirements/run.txt
	$(COMPILE) --output-file requirements/test.txt --constraints requirements/run.txt \
	  --extra test --extra tensorboard
	$(COMPILE) --output-file requirements/docs.txt --constraints requirements/run.txt --extra docs

COMPILE = uv pip compile --quiet --upgrade --universal --python-version 3.11 \
  --no-annotate --custom-compile-command 'make lock' setup.py requirements/base.in

clean:  ## remove the environments, caches and build products (results stay)
	rm -rf .venv .venv-test .venv-docs build dist *.egg-info
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made: requirements/run.txt setup.py
	$(call make-env,.venv,requirements/run.txt)

.venv-test/.made: requirements/test.txt setup.py
	$(call make-env,.venv-test,requirements/test.txt)

.venv-docs/.made: requirements/docs.txt setup.py
	$(call make-env,.venv-docs,requirements/docs.txt)
