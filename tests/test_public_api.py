"""The names of `pl.`: each loads, editors complete them, and `import plateaulens` is quick and prints nothing."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jedi
import pytest

import plateaulens as pl

STUB = Path(pl.__file__).with_suffix(".pyi")
PACKAGES = ("analysis", "interventions", "lm", "metrics", "models", "papers", "plots", "probing", "tasks")
# For a fresh interpreter: the import loads and touches nothing else, and names do not depend on which is used first.
FRESH_IMPORT = """
import logging, random, sys

def global_state():
    return logging.root.level, [*logging.root.handlers], {*logging.root.manager.loggerDict}, random.getstate()

before = global_state()
import plateaulens as pl
assert before == global_state(), "logging or the global generator was touched"
dir(pl)
loaded = {name.partition(".")[0] for name in sys.modules}
heavy = loaded & {"torch", "transformer_lens", "transformers", "plotly", "pandas", "numpy", "huggingface_hub"}
assert not heavy, heavy
for first in ("pl.measure", "pl.record", "import plateaulens.metrics.named"):
    for name in [name for name in sys.modules if name.startswith("plateaulens")]:
        del sys.modules[name]
    import plateaulens as pl
    exec(first)
    assert callable(pl.trace), (first, pl.trace)  # a module of the same name must not hide the function
"""


def stub_names():
    """Name -> module, from the imports of `__init__.pyi`."""
    imports = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def test_stub_lists_the_names_that_load_lazily():
    names = stub_names()
    assert sorted(names) == sorted(pl.__all__) and set(names) <= set(dir(pl))
    for name, module in names.items():
        expected = (
            getattr(import_module(f"plateaulens.{module}"), name) if module else import_module(f"plateaulens.{name}")
        )
        assert getattr(pl, name) is expected, name


def test_there_are_at_most_50_public_names():
    assert len(pl.__all__) <= 50


def test_every_public_name_has_a_docstring():
    assert not [name for name in pl.__all__ if not getattr(pl, name).__doc__]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_list_their_public_names(package):
    module = getattr(pl, package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert not [name for name in module.__all__ if not hasattr(module, name)]


def test_import_is_quick_and_quiet():
    done = subprocess.run([sys.executable, "-W", "error", "-c", FRESH_IMPORT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_names_give_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'ScaleAttention'"):
        pl.ScaleAtention  # noqa: B018


SIGNATURES = [
    ("train", ["model", "task", "cfg"]),
    ("measure", ["model", "batch", "metrics", "reduce"]),
    ("record", ["training", "path", "eval_batch", "metrics", "every", "save_every", "until"]),
    ("find_plateau", ["run", "level", "floor", "rule"]),
    ("TrainConfig", ["steps", "batch_size", "lr"]),
    ("tasks.MovingWindowSum", ["n", "p", "k"]),
    ("lm.evaluate", ["suite", "path", "prompts"]),
]


@pytest.mark.parametrize("function, parameters", SIGNATURES)
def test_editors_complete_the_parameters(function, parameters):
    signatures = jedi.Script(f"import plateaulens as pl\npl.{function}(").get_signatures()
    assert [p.name for s in signatures for p in s.params][: len(parameters)] == parameters


def test_editors_complete_public_names():
    completions = {c.name for c in jedi.Script("import plateaulens as pl\npl.").complete()}
    assert set(pl.__all__) <= completions


def test_version_is_stated_once():
    root = Path(__file__).parents[1]
    assert 'dynamic = ["version"]' in (root / "pyproject.toml").read_text()
    assert re.search(rf"^version: {re.escape(pl.__version__)}$", (root / "CITATION.cff").read_text(), re.M)
