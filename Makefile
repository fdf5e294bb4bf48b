# Everything a fresh machine needs is in two commands: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
OUT ?= demo
TEST_PROCESSES ?= 3
TILES ?= $(or $(LANDSLIDENET_DATA),../shared/data)/landslide4sense/rgb

.PHONY: env demo test lint type lock bench bench-accuracy weights clean

env: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)

demo: env
	$(BIN)/landslidenet demo --out $(OUT)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: env
	$(BIN)/mypy

test: lint type
	$(BIN)/landslidenet demo --out build/demo --size 640
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lock:
	$(BIN)/pip freeze --exclude-editable --disable-pip-version-check > requirements.lock

bench: env
	$(BIN)/python benchmarks/yardsticks.py
	$(BIN)/python benchmarks/thresholds.py
	$(BIN)/python benchmarks/confidence.py
	$(BIN)/python benchmarks/weights.py
	$(BIN)/python benchmarks/invariance.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/warping.py
	$(BIN)/python benchmarks/devices.py

bench-accuracy: env
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/adaptation.py

# The shipped weights again, into build/weights/mean: minutes on a GPU, two hours on two cores.
weights: LABELLED := --tiles $(TILES) --leave-out B
weights: ON := $(LABELLED) --start build/weights/start --noise 0.1
weights: env
	mkdir -p build/weights/start
	git show 380f63e:models/weights/mffenet-lite0.json > build/weights/start/mffenet-lite0.json
	git show 380f63e:models/weights/mffenet-lite0.safetensors > build/weights/start/mffenet-lite0.safetensors
	$(BIN)/landslidenet train $(ON) --cloud 0.5 --steps 720 --learning-rate 3e-4 --out build/weights/one
	$(BIN)/landslidenet train $(ON) --cloud 0.25 --steps 1080 --learning-rate 5e-4 --out build/weights/two
	$(BIN)/landslidenet train $(ON) --cloud 0.25 --steps 720 --learning-rate 1e-3 --out build/weights/three
	$(BIN)/landslidenet average $(addprefix build/weights/,one two three) $(LABELLED) --out build/weights/mean

clean:
	rm -rf $(VENV) build demo out store .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
