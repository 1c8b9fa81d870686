# Every command makes the environment it needs and then does its job. .venv/.EXTRA says that the
# extra EXTRA of pyproject.toml is installed.
PYTHON ?= python3
WORKERS ?= 2
RUN := .venv/bin/python -m

.PHONY: help tour docs test test-slow mutants lint benchmarks clean FORCE
.NOTPARALLEL:

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 18
tour: .venv/.experiments  ## train, visualize, attack, check gradients; writes results/tour/index.html
	$(RUN) experiments.tour
docs: .venv/.docs  ## build the documentation into results/docs/index.html
	$(RUN) experiments.site
test: .venv/.test  ## the tests that take seconds
	$(RUN) pytest -q -n $(WORKERS) --dist loadfile
test-slow: .venv/.test  ## the tests that take longer
	$(RUN) pytest -q -m slow -n $(WORKERS) --dist loadfile
mutants: .venv/.test  ## plant errors in the library one by one and show which tests find them
	.venv/bin/python tests/mutants/run.py --workers $(WORKERS)
lint: .venv/.dev  ## style, layout and types
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
benchmarks: .venv/.experiments  ## time the toolkit against bare JAX; writes results/benchmarks/
	$(RUN) experiments.benchmarks
clean:  ## remove the environment, the results and every cache
	rm -rf .venv results .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The extras contain one another: installing a richer one marks the poorer ones too.
.venv/.experiments: extras = experiments
.venv/.docs: extras = experiments docs
.venv/.test: extras = experiments docs test
.venv/.dev: extras = experiments docs test dev
.venv/.experiments .venv/.docs .venv/.test .venv/.dev: pyproject.toml .venv/.python
	$(RUN) pip install -q --disable-pip-version-check -e '.[$(lastword $(extras))]'
	@touch $(extras:%=.venv/.%)

# Rewritten, with a fresh environment, only when the interpreter's version or the checkout's place has changed.
.venv/.python: FORCE
	@made="$$($(PYTHON) -V) $(CURDIR)"; test "$$(cat $@ 2>/dev/null)" = "$$made" || \
		{ $(PYTHON) -m venv --clear .venv && echo "$$made" > $@; }
