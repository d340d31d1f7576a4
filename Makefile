# make demo | test | test-kit | test-device | lint | docs | sizes | bench | clean. Each makes .venv by itself when it is missing.
PYTHON ?= python3
LIBRARIES ?= oldest
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEVICE := $(VENV)-device-$(notdir $(PYTHON))-$(LIBRARIES)
DEVICE_TESTS := $(addprefix tests/test_,$(addsuffix .py,runtimes threads opener bundle arrays files image boxes predictions video labels doctor extras errors cache))

.PHONY: demo test test-kit test-device device lint docs sizes bench clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

# A file's tests stay in one of the processes: they share what its fixtures make. tests/conftest.py says which come first.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# Kits for other boxes, made of wheels that a package registry has (500 MB), and installed here without a network.
test-kit: $(STAMP)
	$(BIN)/python -m pytest -m kit tests/test_kit.py

# What runs on a device: three engines and nothing of the converter. PYTHON=python3.10 names another Python;
# LIBRARIES=oldest takes the oldest versions that the ranges allow (tests/oldest.txt), LIBRARIES=newest the newest.
test-device: $(DEVICE)/.installed
	$(DEVICE)/bin/python -m pytest $(DEVICE_TESTS)

device: $(DEVICE)/.installed

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ as a site that needs no network: .site/index.html. A dead link or an undocumented name ends it.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The longest files and functions, to be looked at now and then; nothing fails.
sizes: $(STAMP)
	$(BIN)/python -m lab.sizes

bench: $(STAMP)
	$(BIN)/python -m lab.figures all

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@

$(DEVICE)/.installed: pyproject.toml tests/oldest.txt
	test -x $(DEVICE)/bin/python || $(PYTHON) -m venv $(DEVICE)
	$(DEVICE)/bin/python -m pip install --quiet --editable '.[openvino,litert,onnxruntime]' pytest hypothesis \
		$(if $(filter oldest,$(LIBRARIES)),--constraint tests/oldest.txt)
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-device* .site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
