# Both commands work from a bare clone with Python 3.11 or newer: they make a virtual environment in .venv first.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-full check-weights clean

demo: .venv/ready
	$(BIN)/python infer.py

test: .venv/ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# At SD1.5's full size, with CLIP's own vocabulary, of whose package only the list is wanted, not what it depends on.
test-full: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps open_clip_torch==3.3.0 ftfy==6.3.1 wcwidth==0.9.4
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m full -v

# Adapters, pictures and tables were made with the base that ships.
check-weights: .venv/ready
	$(BIN)/python weights/recipe/check.py

# The pins and what they need, then the project itself; at last a check that the pins lie in setup.cfg's ranges.
.venv/ready: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lida needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/python -m pip check
	touch $@

clean:
	rm -rf .venv outputs build *.egg-info
