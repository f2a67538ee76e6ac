# Both commands work from a bare clone with Python 3.11 or newer: they make a virtual environment in .venv first.
PYTHON ?= python3
BIN = .venv/bin

NUMERICAL = tests/nn tests/diffusion tests/adapters tests/kernels tests/aging
PYTEST = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: demo test test-avx2 test-full lint api check-weights clean

demo: .venv/ready
	$(BIN)/python infer.py

# Two processes of one thread each: the models are too small for two threads to share a product.
test: .venv/ready
	$(PYTEST) -n 2 --dist worksteal

# Run the numerical tests with AVX2 kernels, as on CPUs without AVX-512.
test-avx2: .venv/ready
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -n 2 --dist worksteal $(NUMERICAL)

# Run the tests at SD1.5's full size. Install open_clip without most dependencies: only its vocabulary is used.
test-full: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps open_clip_torch==3.3.0 ftfy==6.3.1 wcwidth==0.9.4
	$(PYTEST) -m full -v

# Style and types
lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A page for the library and one for each of its rooms, made from the docstrings, in docs/api
api: .venv/lint
	$(BIN)/python docs/api.py

.venv/lint: .venv/ready
	$(BIN)/python -m pip install --quiet ruff==0.17.6 mypy==2.4.1 pdoc==16.0.0
	touch $@

# Adapters, pictures and tables were made with the base that ships.
check-weights: .venv/ready
	$(BIN)/python weights/recipe/check.py

# Install the pins and what they need, then the project itself; then check that the pins satisfy setup.cfg.
.venv/ready: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lida needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/python -m pip check
	touch $@

clean:
	rm -rf .venv outputs build *.egg-info
