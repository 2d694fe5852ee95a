# Everything a fresh machine with Python 3.11+ and make needs. `make demo` and `make test` set up .venv if it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)

.PHONY: demo test test-slow test-app coverage bench lint types format wheel docs pictures clean

$(VENV)/.installed: $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "posthoc_inn needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,bench,all]" -e plugins/torchvision -e plugins/timm -e plugins/diffusers -e plugins/biggan -e plugins/facenet -e plugins/lpips
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/posthoc-inn fit

# The README's picture, as the demo makes it.
pictures: demo
	mkdir -p examples/pictures
	cp runs/color-digits/samples.png examples/pictures/color-digits.png

# A process a core, each with one thread: on two cores half the time of one process with two.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# The page of `posthoc-inn app` in a browser: every part, by mouse and keyboard. Skipped where there is no chromium.
test-app: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[app]" playwright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/app tests/cli/test_cli_app.py -m "not slow" -rs

# Which lines and branches the tests of `make test` reach; it fails below the floor in pyproject.toml.
coverage: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report term

# t beside other flow libraries, all else beside plain PyTorch: about an hour on two free cores, 15 GB of memory.
# What needs data or a fitted bundle is run by hand: benchmarks/README.md.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/training_step.py --separate
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/small_presets.py
	$(BIN)/python benchmarks/precision.py --synthetic
	$(BIN)/python benchmarks/autoencoder_step.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/time_to_likelihood.py --synthetic

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Builds the core and its plugins as wheels, installs them into an environment of their own, and uses them.
wheel: $(VENV)/.installed
	rm -rf dist build/fresh
	for project in . plugins/torchvision plugins/timm plugins/diffusers plugins/biggan plugins/facenet plugins/lpips; do $(BIN)/python -m build --wheel --outdir dist $$project || exit 1; done
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd build && fresh/bin/python -W error -c "import posthoc_inn; print(posthoc_inn.__version__, posthoc_inn.Interpreter)"
	cd build && fresh/bin/posthoc-inn plugins
	rm -rf build/fresh

# The documentation as HTML, in docs/_build/html. The build itself asks nothing of the network; a warning fails it.
docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist docs/_build docs/reference/api docs/reference/_presets.md .pytest_cache .mypy_cache .ruff_cache .coverage
