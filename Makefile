# `make reproduce` and `make test` do all set-up; everything lives in .venv.

PYTHON ?= python3
JOBS ?= 2
SYSTEM ?= tb
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help venv reproduce notebooks readme test test-fast test-browser bench lint format lab app clean

help:
	@echo "make reproduce   run the whole series on synthetic radiographs (recipe demo); JOBS=1 for one notebook at a time,"
	@echo "                 SYSTEM=pneumonia for the second system"
	@echo "make test        all tests but the browser's; TBKD_DATA=DIR adds those on real radiographs"
	@echo "make test-browser  the notebooks and the app in a headless Chromium, which has to be installed"
	@echo "make bench       speed beside what a user would write instead; for a quiet machine"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make app         the explorers alone, as a web page (Voila)"
	@echo "make lint        style, types, notebooks;   make format   mends the style"
	@echo "make notebooks   run the demo and keep its outputs in the notebooks"
	@echo "make readme      write the README's tables of results from the tables in figures/"
	@echo "make clean       remove .venv (runs/ and figures/ stay)"

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

reproduce: venv
	$(BIN)/tbkd reproduce --recipe demo --system $(SYSTEM) --jobs $(JOBS)

notebooks: venv
	$(BIN)/tbkd reproduce --recipe demo --system $(SYSTEM) --jobs $(JOBS) --keep-outputs

readme: venv
	$(BIN)/python -m tbkd_utils.systems.readme

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not browser"

test-fast: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not real_data and not browser"

test-browser: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/test_browser.py

bench: venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-learn
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps grad-cam ttach
	$(BIN)/python benchmarks/run_all.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: venv  # uploads of up to 200 MB instead of 10: a DICOM radiograph is larger
	$(BIN)/jupyter lab --ServerApp.tornado_settings='{"websocket_max_message_size": 209715200}' \
		notebooks/01_data_preparation.ipynb

# Executed once beforehand, which trains in the terminal what is not trained yet; the page then opens in seconds.
app: venv
	@mkdir -p runs
	$(BIN)/papermill --log-level ERROR app/explorers.ipynb runs/explorers.ipynb
	JUPYTER_PATH=app $(BIN)/voila --template=offline app/explorers.ipynb

clean:
	rm -rf .venv
