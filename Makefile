# Two commands do everything on a machine with Python and make: `make run` and
# `make test`. Each sets up what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/agelib-is-installed

.PHONY: help run test test-lowest test-platforms notebooks lint lab kaggle sample \
	page bench clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

run: $(SETUP)  ## the notebooks in order: a submission file, and ages on a photo
	$(BIN)/python -m agelib

# The notebooks are tested on the bundled sample, with a run folder of their own.
test: $(SETUP) lint  ## every test, then the notebooks against their committed outputs
	PYTHONWARNDEFAULTENCODING=1 $(BIN)/python -m pytest tests --ignore=tests/platforms \
	--cov=agelib --cov-fail-under=90
	runs=$$(mktemp -d) && trap 'rm -rf "$$runs"' EXIT && \
	env -u AGELIB_DATA -u AGELIB_RECIPE AGELIB_RUNS="$$runs" \
	$(BIN)/python -m pytest --nbval --nbval-current-env notebooks

# On Python 3.11, for which all of these versions have wheels.
test-lowest:  ## the package's tests on the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python tests/lowest.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --editable '.[dev]' \
	--constraint .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pytest tests --ignore=tests/platforms

test-platforms: $(SETUP)  ## the notebooks on a pretended Kaggle and a pretended Colab
	$(BIN)/python -m pytest tests/platforms -rs

notebooks: $(SETUP)  ## runs the notebooks on the sample and keeps their outputs
	rm -rf build/runs
	env -u AGELIB_DATA -u AGELIB_RECIPE AGELIB_RUNS=build/runs \
	$(BIN)/python -m agelib --save

lint: $(SETUP)  ## the style of code and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lab: $(SETUP)  ## the notebooks in JupyterLab; what they write is beside them, in runs
	cp agelib/server.json .venv/etc/jupyter/jupyter_server_config.d/agelib.json
	$(BIN)/jupyter lab --allow-root --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

kaggle: $(SETUP)  ## builds dist/kaggle: make kaggle OWNER=your-name-on-kaggle
	$(BIN)/python -m agelib.kaggle $(OWNER)

sample: $(SETUP)  ## draws data/sample again
	$(BIN)/python -m agelib.sample

page: $(SETUP)  ## builds dist/page: ages in a browser that sends no photo anywhere
	$(BIN)/python -m agelib.browser

bench: $(SETUP)  ## how fast and how large, in twenty minutes; writes data/results
	$(BIN)/python tests/benchmarks/speed.py

$(SETUP): pyproject.toml
	@echo "Installing into .venv, once; torch is large, so this takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:  ## removes what make has installed
	rm -rf .venv .venv-lowest
