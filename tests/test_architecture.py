"""The packages of docs/architecture.md: which module may import which; and an import that is quick and quiet."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import plateaulens as pl

SRC = Path(pl.__file__).parent
# A module imports only from its own package and from packages above it in this list.
ORDER = (
    ("_registry", "_io", "_signals"),
    ("batch", "protocols"),
    ("tasks",),
    ("hooks",),
    ("models",),
    ("tracing",),
    ("metrics",),
    ("interventions",),
    ("training",),
    ("runs",),
    ("lm",),
    ("analysis",),
    ("probing",),
    ("plots",),
    ("report",),
    ("papers",),
    ("cli",),
)
RANK = {package: rank for rank, packages in enumerate(ORDER) for package in packages}
# Prompts of language models are handed over to their generation by a function that is looked up when it is needed.
DOORS = {("plateaulens.tracing.traces", "plateaulens.lm.generation")}
WITHOUT_MODELS = ("_registry", "_io", "_signals", "batch", "protocols", "tasks")  # packages that need no transformer
FILES = sorted(p.relative_to(SRC) for p in SRC.rglob("*.py") if p != SRC / "__init__.py")


def module_name(path):
    """The dotted name of a file, a package's for its `__init__`."""
    return ".".join(["plateaulens", *path.with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_name(path): (SRC / path).read_text() for path in FILES}


def package_of(module):
    return module.split(".")[1]


def imported_modules(module, source, *, at_import_time=False):
    """The modules that a source text imports, also inside functions unless `at_import_time`."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    inside = {id(n) for f in functions for n in ast.walk(f)} if at_import_time else set()
    typing_only = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        if id(node) in inside or id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def forbidden_imports(module, source):
    """The imports that the order of packages forbids."""
    package = package_of(module)
    for name in imported_modules(module, source):
        top = name.split(".")[0]
        if top in ("transformer_lens", "transformers") and package in WITHOUT_MODELS:
            yield name
        if top != "plateaulens" or (module, name) in DOORS:
            continue
        if name == "plateaulens":
            if package not in ("papers", "cli"):  # what is written as a user would write it
                yield name
        elif package_of(name) != package and RANK[package_of(name)] >= RANK[package]:
            yield name


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_packages_above_its_own(module):
    assert package_of(module) in RANK, "a new package needs its place in ORDER"
    assert not list(forbidden_imports(module, MODULES[module]))


def test_no_modules_import_each_other_in_a_cycle():
    graph = {}
    for module, source in MODULES.items():
        own = {name for name in imported_modules(module, source) if name in MODULES and (module, name) not in DOORS}
        # a package's __init__ collects what its modules define: an import of the package itself is none of a module
        graph[module] = {name for name in own if name != module}
    packages = {module for module in MODULES if any(other.startswith(f"{module}.") for other in MODULES)}
    for module, names in graph.items():
        assert not {name for name in names & packages if module.startswith(f"{name}.")}, f"{module} imports its package"
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


CASES = [
    ("tasks.x", "from plateaulens.metrics.named import loss", True),
    ("tasks.x", "def f():\n    import transformers", True),
    ("tracing.x", "from plateaulens.interventions import intervene", True),
    ("tracing.x", "def f():\n    from plateaulens.lm.generation import generate", True),
    ("tracing.traces", "def f():\n    from plateaulens.lm.generation import generate", False),
    ("metrics.x", "from plateaulens.tracing import Trace", False),
    ("runs.recording", "from plateaulens.runs.run import Run", False),
    ("report.x", "from plateaulens.papers import matrix_completion", True),
    ("analysis.x", "import plateaulens", True),
    ("cli.x", "import plateaulens", False),
]


@pytest.mark.parametrize("module, source, forbidden", CASES)
def test_forbidden_imports_are_found(module, source, forbidden):
    assert bool(list(forbidden_imports(f"plateaulens.{module}", source))) == forbidden


QUIET = """
import logging, random, sys
before = logging.root.level, list(logging.root.handlers), logging.root.manager.loggerDict.copy(), random.getstate()
import plateaulens
after = logging.root.level, list(logging.root.handlers), logging.root.manager.loggerDict.copy(), random.getstate()
assert before == after, "logging or the global generator was touched"
loaded = {name.partition(".")[0] for name in sys.modules}
heavy = loaded & {"torch", "transformer_lens", "transformers", "plotly", "pandas", "numpy", "huggingface_hub"}
assert not heavy, heavy
dir(plateaulens)
assert "torch" not in sys.modules
"""


def test_importing_the_package_is_quick_and_quiet():
    done = subprocess.run([sys.executable, "-W", "error", "-c", QUIET], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", pl.__all__)
def test_every_public_name_is_there(name):
    assert getattr(pl, name) is not None and name in dir(pl)


@pytest.mark.parametrize("first", ["pl.measure", "pl.record", "from plateaulens.metrics.named import loss"])
def test_public_names_do_not_depend_on_what_was_used_first(first):
    code = f"import plateaulens as pl\n{first}\nassert callable(pl.trace), pl.trace"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_unique_and_unknown_ones_give_the_nearest():
    assert len(set(pl.__all__)) == len(pl.__all__)
    with pytest.raises(AttributeError, match="did you mean 'ScaleAttention'"):
        pl.ScaleAtention  # noqa: B018
