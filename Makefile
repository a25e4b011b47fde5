# Every target does its own set-up: only Python (3.11 or newer) and make are needed.

# The first of these that is new enough. Override with `make PYTHON=...`.
new_enough = $(firstword $(foreach p,$(1),$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, $(2)))' 2>/dev/null && echo $(p))))
PYTHON ?= $(call new_enough,python3 python3.13 python3.12 python3.11,11)
NEWEST_PYTHON ?= $(call new_enough,python3.13 $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3.13) \
	python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3.12) python3,12)
TF_PYTHON ?= python3.11
WORKERS ?= 2
ARGS ?=
# Each worker takes the files of one half, not every other test: it makes what the tests of a file share once.
SHARED = -n $(WORKERS) --dist worksteal

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow crash-test check test-tpu test-torch test-savedmodel test-tf test-newest bench bench-tf clean

help:  ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: .venv/ready  ## train on handwritten digits, evaluate, predict; options: make demo ARGS="--steps 800"
	.venv/bin/python examples/digits.py $(ARGS)

test: .venv/ready  ## run the tests; options: make test ARGS="-k evaluate"
	.venv/bin/python -m pytest $(SHARED) -m 'not slow' $(ARGS)

test-slow: .venv/ready  ## run the tests that take long: processes killed, eight devices, examples, TensorFlow's trajectories
	.venv/bin/python -m pytest $(SHARED) -m slow $(ARGS)

crash-test: .venv/ready  ## kill trainings until they end, compare; options: make crash-test ARGS="--kills 100 --seed 7"
	.venv/bin/python tests/crash/crash_runs.py $(ARGS)

check: .venv/ready  ## lint, check types and layers, compare the export list with the package
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -q tests/test_public_api.py

test-tpu: .venv-tpu/ready  ## compile the digits example with the real TPU compiler (no TPU needed)
	.venv-tpu/bin/python -m pytest tests/tpu $(ARGS)

test-torch: .venv-torch/ready  ## train on torchdata's loader, in an environment that has torch
	.venv-torch/bin/python -m pytest tests/data/test_torchdata.py $(ARGS)

test-savedmodel: .venv-savedmodel/ready  ## write exports for TensorFlow, load and run them there
	.venv-savedmodel/bin/python -m pytest tests/export/test_for_tensorflow.py $(ARGS)

test-tf: .venv/ready .venv-tf/ready  ## train with TensorFlow's TPUEstimator, and go on here from its checkpoints
	.venv-tf/bin/python tests/tensorflow_oracle/record_continued.py .venv-tf/continued
	JAXSPEC_CONTINUED=.venv-tf/continued .venv/bin/python -m pytest tests/tensorflow_oracle/test_continued.py $(ARGS)

test-newest:  ## run the tests with the newest JAX, on Python 3.12 or newer, where there is one
	@if [ -z "$(NEWEST_PYTHON)" ]; then echo "No Python 3.12 or newer here: nothing to do."; \
	else $(MAKE) .venv-newest/ready && .venv-newest/bin/python -m pytest $(SHARED) -m 'not slow' $(ARGS); fi

bench: .venv-bench/ready  ## measure against other libraries, write docs/benchmarks.md; options: make bench ARGS=--quick
	.venv-bench/bin/python benchmarks/run_all.py $(ARGS)

bench-tf: .venv-bench/ready .venv-tf/ready  ## measure against TensorFlow's TPUEstimator, write docs/benchmarks.md
	.venv-bench/bin/python benchmarks/real_tpu_estimator.py $(ARGS)
	.venv-bench/bin/python benchmarks/report.py

clean:  ## remove the environments, caches, and what the examples wrote
	rm -rf .venv .venv-tpu .venv-torch .venv-savedmodel .venv-tf .venv-newest .venv-bench runs build dist src/*.egg-info
	rm -rf .pytest_cache .jax_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made once, and completed when pyproject.toml changes.
.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# libtpu stays out of the ordinary environment: there JAX would look for a TPU at every start.
.venv-tpu/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python $(PIP_INSTALL) --editable '.[test-tpu]'
	@touch $@

# A new TensorFlow, beside JAX: jax2tf needs both.
.venv-savedmodel/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv-savedmodel
	.venv-savedmodel/bin/python $(PIP_INSTALL) --editable '.[test-savedmodel]'
	@touch $@

# torch is larger than all the rest together.
.venv-torch/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python $(PIP_INSTALL) --editable '.[test-torch]'
	@touch $@

# The last TensorFlow that has the TPUEstimator. It needs an older NumPy than jaxspec.
.venv-tf/ready:
	$(TF_PYTHON) -m venv .venv-tf
	.venv-tf/bin/python $(PIP_INSTALL) 'tensorflow-cpu==2.15.*' 'numpy<2'
	@touch $@

# Newer than what pip would choose for .venv, whose JAX is the newest that an older Python may have.
.venv-newest/ready: pyproject.toml
	$(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable '.[test]'
	@touch $@

# Keras and matplotlib are for comparing alone.
.venv-bench/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(PIP_INSTALL) --editable '.[bench]'
	@touch $@
