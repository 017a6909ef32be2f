# Two commands carry a fresh machine: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= demo
# Versions tested together, where this Python version has them; requirements.txt alone gives ranges.
CONSTRAINTS = $(wildcard constraints-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %)

.PHONY: demo test check lint golden clean

$(VENV)/core: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/test: requirements-test.txt $(VENV)/core
	$(INSTALL) -r requirements-test.txt
	touch $@

# Apache Beam pins older packages than the core's, so it has an environment of its own.
$(VENV)/beam/ready: requirements-beam.txt requirements.txt
	$(PYTHON) -m venv $(VENV)/beam
	$(VENV)/beam/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-beam.txt
	touch $@

# Phantom radiographs -> pretraining -> GLoRI on it and on a random network -> report -> Hugging Face folder.
demo: $(VENV)/core
	rm -rf $(DEMO)
	$(BIN)/python -m data_prep.build --reader=phantom --num_images=600 --image_px=160 --output=$(DEMO)/data
	$(BIN)/python -m cxr_jax.train --config=configs/demo.py --workdir=$(DEMO)/pretrain --config.data.path=$(DEMO)/data
	for network in teacher random; do \
	  $(BIN)/python -m cxr_jax.train --config=configs/finetune/demo_glori.py --workdir=$(DEMO)/glori_$$network \
	    --config.init_from=$(DEMO)/pretrain --config.init_network=$$network --config.data.path=$(DEMO)/data || exit $$?; \
	done
	$(BIN)/python -m cxr_jax.evaluate --config=configs/eval/head.py --workdir=$(DEMO)/report \
	  --config.init_from=$(DEMO)/glori_teacher --config.baselines.runs="('$(DEMO)/glori_random',)"
	$(BIN)/python -m cxr_jax.convert --input=$(DEMO)/pretrain --output=$(DEMO)/huggingface --format=hf
	@echo "open $(DEMO)/report/report.html; the PyTorch checkpoint is $(DEMO)/huggingface"

# Files in their own order: xdist's begins with those of many tests, and one worker is left with the few long ones.
test: $(VENV)/test $(VENV)/beam/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	CXR_BEAM_PYTHON=$(VENV)/beam/bin/python $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

# What to run before a change is handed on: style, types, doors, golden configs, and the READMEs' commands.
check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_doors.py tests/golden tests/test_readme_commands.py

lint: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/test
	PYTHONPATH=. $(BIN)/python tests/golden/test_configs.py

clean:
	rm -rf $(VENV) $(DEMO)
