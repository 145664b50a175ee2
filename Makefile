# Every target sets up what it needs; a machine needs Python 3.11+ and make.
#   make demo    train the paper's moving-window sum and write its report
#   make test    the quick tests, in at most 5 minutes on 2 cores
#   make check   everything that CI runs, in at most 40 minutes
PYTHON ?= python3
RUN ?= runs/demo
# Two processes of one thread each: more threads than cores makes torch many times slower.
TEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q -n 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test test-slow test-tl3 notebooks docs lint types check bench clean

# torch is installed first and pinned: installed as a dependency it may come with gigabytes of CUDA libraries.
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

# second_device.py replaces parts of PyTorch for its process, so it does not run beside other tests.
test: .venv/.ready
	$(call TEST,.venv) --ignore tests/end_to_end/test_docs.py
	$(call TEST,.venv) tests/end_to_end/second_device.py

test-slow: .venv/.ready
	$(call TEST,.venv) -m slow --ignore tests/end_to_end/test_notebooks.py

notebooks: .venv/.ready
	$(call TEST,.venv) -m 'slow or not slow' tests/end_to_end/test_notebooks.py

# Every snippet of the README and of docs/ runs, and every command parses.
docs: .venv/.ready
	$(call TEST,.venv) tests/end_to_end/test_docs.py

test-tl3: .venv-tl3/.ready
	$(call TEST,.venv-tl3)

lint: .venv/.ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/.ready
	.venv/bin/mypy
	.venv/bin/pyright --pythonpath .venv/bin/python

check: lint types test test-slow notebooks docs test-tl3

bench: .venv/.ready
	.venv/bin/python benchmarks/bench.py
	.venv/bin/python benchmarks/sampling.py
	.venv/bin/python benchmarks/interventions.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python benchmarks/checkpoints.py
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/probes.py
	OMP_NUM_THREADS=1 .venv/bin/python benchmarks/nuclear_norm.py

clean:
	rm -rf .venv .venv-tl3 .pytest_cache .mypy_cache .ruff_cache .hypothesis
