# make demo | test | test-kit | test-device | test-targets | lint | docs | sizes | bench | clean. Each makes .venv by itself when it is missing.
PYTHON ?= python3
LIBRARIES ?= oldest
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEVICE := $(VENV)-device-$(notdir $(PYTHON))-$(LIBRARIES)
DEVICE_TESTS := $(addprefix tests/test_,$(addsuffix .py,runtimes threads opener bundle arrays files image boxes predictions video labels doctor extras errors cache))

.PHONY: demo test test-kit test-device test-targets device lint docs sizes bench clean

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

# Compilers and readers of other people, each in an environment of its own, and the tests that need them. rknn-toolkit2 asks
# for a torch of 2024, which is gigabytes: it works with the one that the converter has.
test-targets: $(STAMP) .venv-target-rknn/.installed .venv-target-readers/.installed
	$(BIN)/python -m pytest tests/test_targets.py tests/test_artefacts.py

.venv-target-rknn/.installed: tests/rknn.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement tests/rknn.txt
	touch $@

.venv-target-readers/.installed:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet 'openvino-model-api>=0.4,<0.5' flatbuffers
	$(@D)/bin/python -m pip install --quiet --no-deps tflite-support==0.4.4  # it pins protobuf below 4
	touch $@

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
