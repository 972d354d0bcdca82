# make setup         the environment .venv (CPU build of JAX unless an NVIDIA driver is found)
# make demo          train, evaluate and draw pictures on the committed sample: runs/demo
# make adverse-demo  the sample at night, in rain, fog, ..., with labels and gallery: runs/adverse_demo
# make robust-demo   self-distillation for bad weather, on the committed sample: runs/robust-demo
# make test          lint, documentation and tests, without PyTorch
# make docs          the documentation, as pages in docs/_build
# make lint          format, style, imports and types only
# make lowest        tests with the lowest versions that pyproject.toml allows; needs uv
# make torch         .venv-torch with PyTorch and diffusers, which generate_adverse.py drives
# make test-torch    comparisons with a live PyTorch, in .venv-torch
# make onnx          .venv-onnx with jax2onnx, with which tools/export.py writes ONNX
# make test-onnx     the test for that
# make app           .venv-app with Gradio, for the page of tools/app.py
# make test-app      tests of that page, in headless Chromium if it is installed
# make benchmarks    speed and memory against PyTorch: adds rows to results/benchmarks.csv
# make sample        render the committed sample again (twenty minutes on two CPU cores)

PYTHON ?= python3
PIP_ARGS ?=
UV ?= uv
BIN := .venv/bin
QUESTIONS ?= sampler prediction training_step startup
SECONDS_A_CASE ?= 20

.PHONY: setup demo adverse-demo robust-demo docs lint test lowest torch test-torch onnx test-onnx app test-app benchmarks sample clean

setup: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; then \
	  echo "NVIDIA driver found: installing JAX for CUDA"; cp requirements.txt .venv/requirements.txt; \
	else \
	  echo "No NVIDIA driver: installing JAX for the CPU"; \
	  sed 's/^jax\[cuda12\]/jax/' requirements.txt > .venv/requirements.txt; \
	fi
	$(BIN)/pip install --quiet $(PIP_ARGS) -r .venv/requirements.txt -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python train.py --config=configs/demo.py --workdir=runs/demo

# The teacher is the demo's checkpoint or, without one, the regression control after a minute of training.
adverse-demo: setup
	set -e; teacher=runs/adverse_demo_teacher; \
	for run in runs/demo_regression runs/demo; do \
	  if [ -e $$run/metrics.json ]; then teacher=$$run; fi; \
	done; \
	if [ ! -e $$teacher/metrics.json ]; then \
	  $(BIN)/python train.py --config=configs/demo_regression.py --workdir=$$teacher \
	    --config.num_steps=200; \
	fi; \
	$(BIN)/python generate_adverse.py --config=configs/adverse_demo.py --workdir=runs/adverse_demo \
	  --config.teacher.checkpoint=$$teacher

# One teacher, students for rendered and for simulated weather, and the control.
robust-demo: setup
	$(BIN)/python studies/robustness.py --workdir=runs/robust-demo --images=rendered,physical,clear

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The blocks of code in it are executed by tests/docs.
docs: setup
	JAX_PLATFORMS=cpu $(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env docs docs/_build

test: lint docs
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m "not torch"

# Libraries of different ages warn about each other, so only here warnings are not errors.
lowest:
	$(UV) venv --clear --python $(PYTHON) .venv-lowest
	$(UV) pip install --python .venv-lowest --resolution lowest-direct --editable .
	$(UV) pip install --python .venv-lowest -r requirements-dev.txt
	.venv-lowest/bin/python -m pytest -n 2 --dist=worksteal -m "not torch" -W default

# Plain `torch` on Linux downloads gigabytes of CUDA. For tests, or without a GPU, its CPU build is
# enough: PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
torch: .venv-torch/installed

test-torch: torch
	.venv-torch/bin/python -m pytest -m torch

# jax2onnx requires an older Orbax than the package, but only for checkpoints: hence --no-deps.
onnx: .venv-onnx/installed
.venv-onnx/installed: ALONE := jax2onnx==0.17.1

test-onnx: onnx
	.venv-onnx/bin/python -m pytest tests/inference/test_portable.py

# Gradio requires an older Pillow than the pinned one.
app: .venv-app/installed
.venv-app/installed: EDIT := /^pillow==/d

test-app: app
	.venv-app/bin/python -m pytest tests/app

# Environments for one purpose each, with the CPU build of JAX. EDIT (for sed) changes
# requirements.txt; ALONE is a package installed without its dependencies.
.venv-%/installed: requirements.txt requirements-dev.txt requirements-%.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	sed 's/^jax\[cuda12\]/jax/; $(EDIT)' requirements.txt > .venv-$*/requirements.txt
	.venv-$*/bin/pip install --quiet $(PIP_ARGS) -r .venv-$*/requirements.txt -r requirements-dev.txt \
	  -r requirements-$*.txt
	.venv-$*/bin/pip install --quiet --no-deps $(ALONE) --editable .
	touch $@

# One script per question; a quarter of an hour on two CPU cores with nothing else running.
benchmarks: setup torch
	set -e; folder=$$(mktemp -d); trap "rm -r $$folder" EXIT; for question in $(QUESTIONS); do \
	  $(BIN)/python benchmarks/$$question.py --seconds=$(SECONDS_A_CASE) --folder=$$folder; \
	done

# Rendered elsewhere first, so that the old sample stays until the new one is complete.
sample: setup
	$(BIN)/python tools/render_scenes.py --preset=sample --output=runs/sample
	$(BIN)/python tools/render_scenes.py --preset=sample_adverse --output=runs/sample \
	  --conditions=night,fog,rain,snow,night-rain
	for part in $$(ls runs/sample); do rm -rf sample/$$part; done
	mv runs/sample/* sample
	rmdir runs/sample

clean:
	rm -rf .venv .venv-app .venv-lowest .venv-onnx .venv-torch docs/_build runs
