# make demo    train a small NAT on handwritten digits, from nothing
# make test    the checks, from nothing
# make format  rewrite the code in the project's style
# make docs    the site, built strictly with its notebooks run, and served on this machine
# make bench   the numbers in the README
# make aot     the GPU kernels, compiled for GPUs that are not here: benchmarks/results/aot.md
# make aot-tpu  the TPU kernels, compiled for TPUs that are not here: benchmarks/results/tpu.md
# make test-slow  the full product of cases that `make test` chooses from
# make test-latest  against JAX's latest pre-release: says what broke, and never fails
# make gpu     on a machine with a GPU: the tests of the kernels, then their speed
# make tpu     the same on a machine with a TPU

VENV ?= .venv
OLDEST ?= .venv-oldest
AOT ?= .venv-aot
LATEST ?= .venv-latest
PYTHON ?= python3
WORKERS ?= 2
bin = $(VENV)/bin

# For editable installs. setuptools warns at each of them that folders named like a package may hide
# it, which does not concern us: natjax/ here is the package. Only that one warning is left out.
quiet_editable = PYTHONWARNINGS="ignore:Editable installation."

.PHONY: demo test test-oldest test-slow test-latest format lint types pytest wheel bench aot docs docs-check aot-check aot-tpu aot-step aot-step-check bench-step gpu gpu-step tpu clean \
  environments

demo: $(VENV)/train
	$(bin)/natjax train digits

test: lint types pytest wheel

format: $(VENV)/dev
	$(bin)/ruff format
	$(bin)/ruff check --fix

lint: $(VENV)/dev
	$(bin)/ruff format --check
	$(bin)/ruff check

types: $(VENV)/dev
	$(bin)/pyrefly check --python-interpreter-path $(bin)/python

# What needs the source tree: its doctests, the README's snippets, the packaging rules.
pytest: $(VENV)/dev
	$(bin)/python -m pytest --doctest-modules -n $(WORKERS) --dist worksteal natjax \
	  tests/test_packaging.py tests/test_readme.py tests/test_docs.py tests/test_benchmarks.py tests/test_aot_tpu.py

# Everything else, on what users install.
wheel: $(VENV)/dev
	scripts/test-wheel $(bin)/python -n $(WORKERS) --dist worksteal -m "not slow"

test-oldest: $(OLDEST)/dev
	scripts/test-wheel $(OLDEST)/bin/python -n $(WORKERS) --dist worksteal -m "oldest and not slow" -k "not toy"

# The full product of what `make test` chooses from.
test-slow: $(VENV)/dev
	scripts/test-wheel $(bin)/python -n $(WORKERS) --dist worksteal -m slow

# In an environment of its own, which it makes or brings up to date.
test-latest:
	scripts/test-latest $(LATEST)

# A warning is an error: a broken link, a docstring that is no reStructuredText, a notebook that fails.
docs-check: $(VENV)/dev
	$(bin)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "the site is docs/_build/html/index.html"

docs: docs-check
	$(bin)/python -m http.server --bind 127.0.0.1 --directory docs/_build/html 8000

bench: $(VENV)/dev
	$(bin)/python benchmarks/ops.py

aot: $(AOT)/ready
	$(AOT)/bin/python -m benchmarks.aot
	$(AOT)/bin/python -m benchmarks.aot.in_triton
	$(AOT)/bin/python -m benchmarks.aot.in_mosaic

aot-tpu: $(AOT)/ready
	$(AOT)/bin/python -m benchmarks.aot.tpu

# Some of either, against the committed tables: fails on a new spill, an error, a copy of an argument,
# or another number of bundles.
aot-check: $(AOT)/ready
	$(AOT)/bin/python -m benchmarks.aot --check
	$(AOT)/bin/python -m benchmarks.aot.tpu --check --workers $(WORKERS)
	$(AOT)/bin/python -m benchmarks.aot.in_triton --check
	$(AOT)/bin/python -m benchmarks.aot.in_mosaic --check

# The whole training step, for GPUs and TPUs: benchmarks/results/aot_step.md. Two hours or three.
aot-step: $(AOT)/ready
	$(AOT)/bin/python -m benchmarks.aot.step

# A small one for each: fails if activations move between devices.
aot-step-check: $(AOT)/ready
	$(AOT)/bin/python -m benchmarks.aot.step --check --workers $(WORKERS)

# The training step beside Swin's, here: benchmarks/results/train_step_cpu.md.
bench-step: $(VENV)/dev
	$(bin)/python -m benchmarks.train_step

# The same with the Python that has JAX for GPUs.
gpu-step:
	$(PYTHON) -m benchmarks.train_step --batch 128 --steps 10

# With the Python that has JAX for GPUs, whose environment this leaves alone.
gpu:
	$(PYTHON) -m benchmarks.gpu

# With the Python that has JAX for TPUs.
tpu:
	$(PYTHON) -m benchmarks.tpu

$(VENV)/bin/python $(OLDEST)/bin/python:
	@python=$$(scripts/find-python) && echo "using $$python" && "$$python" -m venv $(@D)/..
	@$@ -m pip install --quiet --upgrade pip

$(VENV)/train: pyproject.toml | $(VENV)/bin/python
	$(quiet_editable) $(bin)/python -m pip install --quiet --editable ".[train]"
	@touch $@

$(VENV)/dev: pyproject.toml | $(VENV)/bin/python
	$(quiet_editable) $(bin)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/train

# The oldest versions that pyproject.toml allows, where newer ones could hide a fault.
$(OLDEST)/dev: pyproject.toml | $(OLDEST)/bin/python
	$(quiet_editable) $(OLDEST)/bin/python -m pip install --quiet --editable ".[dev]" "jax==0.11.2" "jaxlib==0.11.2"
	@touch $@

$(AOT)/ready: scripts/aot-env
	scripts/aot-env $(AOT)
	@touch $@

# What CI needs besides `make demo` and `make test`; `make -j3 demo environments` does it all side by
# side. (Not $(VENV)/dev: the demo installs less into the same environment, and shows that it is enough.)
environments: $(OLDEST)/dev $(AOT)/ready

clean:
	rm -rf $(VENV) $(OLDEST) $(AOT) $(LATEST) build dist *.egg-info
