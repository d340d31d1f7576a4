# make demo | test | test-device | lint | bench | clean. Each makes .venv by itself when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-device lint bench clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

# What runs on a device, with the three engines, the oldest libraries that the pins allow, and nothing of the converter.
test-device:
	test -x $(VENV)-device/bin/python || $(PYTHON) -m venv $(VENV)-device
	$(VENV)-device/bin/python -m pip install --quiet --editable '.[openvino,litert,onnxruntime]' \
		'numpy==1.26.*' 'pillow==10.4.*' 'click==8.2.*' pytest hypothesis
	$(VENV)-device/bin/python -m pytest tests/test_runtimes.py tests/test_threads.py tests/test_bundle.py \
		tests/test_image.py tests/test_labels.py tests/test_doctor.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m lab.figures all

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-device build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
