# Every target sets up what it needs; a machine needs Python 3.11+ and make.
#   make demo    train the paper's moving-window sum and write its report
#   make test    the tests, in at most 8 minutes
#   make check   everything CI runs: lint, types, tests, slow tests, TransformerLens 3.9
PYTHON ?= python3
RUN ?= runs/demo
# Two processes of one thread each: more threads than cores makes torch many times slower.
TEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q -n 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test test-slow test-tl3 lint types check bench clean

# torch comes first and pinned: a later, looser request would fetch gigabytes of CUDA.
define environment
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install -q --no-compile -c $(2) torch
	$(1)/bin/pip install -q --no-compile -c $(2) -e '.[dev]'
	touch $(1)/.ready
endef

setup: .venv/.ready
.venv/.ready: pyproject.toml constraints/tl4.txt
	$(call environment,.venv,constraints/tl4.txt)
.venv-tl3/.ready: pyproject.toml constraints/tl3.txt
	$(call environment,.venv-tl3,constraints/tl3.txt)

demo: .venv/.ready
	.venv/bin/plateaulens train mws --steps 400 --seed 0 --out $(RUN) --overwrite

# What pretends to be a second device would show in other tests: it has processes of its own.
test: .venv/.ready
	$(call TEST,.venv)
	$(call TEST,.venv) tests/end_to_end/second_device.py

test-slow: .venv/.ready
	$(call TEST,.venv) -m slow

test-tl3: .venv-tl3/.ready
	$(call TEST,.venv-tl3)

lint: .venv/.ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/.ready
	.venv/bin/mypy

check: lint types test test-slow test-tl3

bench: .venv/.ready
	.venv/bin/python benchmarks/bench.py
	.venv/bin/python benchmarks/sampling.py
	.venv/bin/python benchmarks/interventions.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python benchmarks/checkpoints.py
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/probes.py
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/nuclear_norm.py

clean:
	rm -rf .venv .venv-tl3 .pytest_cache .mypy_cache .ruff_cache .hypothesis
