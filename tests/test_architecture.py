"""The packages of docs/architecture.md: which module may import which."""

import ast
import graphlib
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
# (module, import): `trace` looks up the generation of language models when it gets prompts.
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
            if package not in ("papers", "cli"):  # recipes and commands use the public names
                yield name
        elif package_of(name) != package and RANK[package_of(name)] >= RANK[package]:
            yield name


def test_modules_import_only_from_packages_above_their_own():
    assert not {module for module in MODULES if package_of(module) not in RANK}, (
        "a new package needs its place in ORDER"
    )
    forbidden = {module: [*forbidden_imports(module, source)] for module, source in MODULES.items()}
    assert not {module: names for module, names in forbidden.items() if names}


def test_no_modules_import_each_other_in_a_cycle():
    graph = {}
    for module, source in MODULES.items():
        names = {name for name in imported_modules(module, source) if name in MODULES and (module, name) not in DOORS}
        graph[module] = names - {module}
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
