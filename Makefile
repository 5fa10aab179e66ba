# On a fresh machine: `make demo` does all the set-up and runs the main job, `make test` all the set-up and the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := core distill export runtime cloud_fallback telemetry src/pocketlens/*.py src/pocketlens/commands src/pocketlens/demo tests benchmarks hatch_build.py
DEMO_OUT ?= build/demo
JOBS ?= 2  # processes that share the tests, each on one thread

.PHONY: demo demo-quick demo-full test test-slow check format wheel test-wheel test-aarch64 bench clean

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard core/c/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[all]" --group dev
	touch $@

demo: $(STAMP)
	$(BIN)/pocketlens demo --out $(DEMO_OUT)

demo-quick: $(STAMP)
	$(BIN)/pocketlens demo --quick --out $(DEMO_OUT)-quick

demo-full: $(STAMP)
	$(BIN)/pocketlens demo --full --out $(DEMO_OUT)-full

test: $(STAMP)
	bash tests/toolchains.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout 1800

check: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist  # the wheel is made from the sdist, as an index or a distribution would

# The built wheel, alone, in an environment without torch, on the bundle that the quick demo made.
test-wheel: wheel demo-quick
	PYTHON=$(PYTHON) bash tests/wheel.sh dist $(DEMO_OUT)-quick

# The wheel on emulated aarch64; needs Debian, qemu-user-static and the package index.
test-aarch64: $(STAMP) demo-quick
	rm -rf dist
	POCKETLENS_COMPILED=no $(BIN)/python -m build --wheel --outdir dist  # pure: for any processor
	PYTHON=$(PYTHON) bash tests/aarch64.sh dist $(DEMO_OUT)-quick/bundle

bench: $(STAMP)
	$(BIN)/python -m benchmarks.install_size
	$(BIN)/python -m benchmarks.import_time
	$(BIN)/python -m benchmarks.training_threads
	$(BIN)/python -m benchmarks.device_kit
	$(BIN)/python -m benchmarks.bombs
	$(BIN)/python -m benchmarks.picture_worker
	$(BIN)/python -m benchmarks.mutations --count 7000
	$(BIN)/python -m benchmarks.erasures --erasures 200
	$(BIN)/python -m benchmarks.store_kills --kills 300
	$(BIN)/python -m benchmarks.power_cuts --cuts 200
ifdef PEERS  # a python with fastembed and open_clip: what we compare ourselves with
	$(BIN)/python -m benchmarks.throughput --peers $(PEERS)
	$(BIN)/python -m benchmarks.throughput --peers $(PEERS) --size 12mp --count 48
	$(BIN)/python -m benchmarks.cold_start --peers $(PEERS)
endif

clean:
	rm -rf build dist $(VENV)
