"""Rooms and floors, read from the source; and an import that is quick and quiet."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import plateaulens as pl

SRC = Path(pl.__file__).parent
FLOORS = {
    "_shapes": 0,
    "_lookup": 0,
    "tasks": 1,
    "metrics": 1,
    "hooked": 1,
    "files": 1,
    "choosing": 1,
    "models": 2,
    "unhooked": 2,
    "generating": 2,
    "tracing": 2,
    "measurements": 2,
    "measuring": 2,
    "interventions": 3,
    "training": 3,
    "runs": 4,
    "recording": 4,
    "checkpoints": 4,
    "analysis": 5,
    "plots": 6,
    "report": 6,
    "papers": 7,
    "cli": 8,
}
NEIGHBOURS = {
    ("generating", "unhooked"),
    ("tracing", "generating"),
    ("measurements", "tracing"),
    ("measuring", "tracing"),
    ("measuring", "measurements"),
    ("recording", "runs"),
    ("report", "plots"),
}
NOT_ALLOWED = {room: {"transformer_lens", "transformers"} for room in ("tasks", "metrics", "_shapes", "_lookup")}
FILES = sorted(p.relative_to(SRC) for p in SRC.rglob("*.py") if p != SRC / "__init__.py")


def room_of(path):
    return path.parts[0].removesuffix(".py")


def imported(source, package):
    """Every module that a source text imports anywhere, absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == "plateaulens" else [base]


def trespasses(path, source):
    """The imports that the floors forbid."""
    room, package = room_of(path), ".".join(["plateaulens", *path.parts[:-1]])
    for name in imported(source, package):
        top, _, rest = name.partition(".")
        if top in NOT_ALLOWED.get(room, ()):
            yield name
        other = rest.partition(".")[0]
        if name == "plateaulens" and room == "cli":
            continue  # the shell calls what a user would: the public names
        if top == "plateaulens" and other != room and other != "__version__":
            if other not in FLOORS or FLOORS[other] >= FLOORS[room] and (room, other) not in NEIGHBOURS:
                yield name


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_module_imports_only_from_lower_floors(path):
    assert room_of(path) in FLOORS, "a new room needs its floor"
    assert not list(trespasses(path, (SRC / path).read_text()))


CASES = [
    ("tasks/x.py", "from plateaulens.metrics.named import loss", True),
    ("metrics/x.py", "def f():\n    import transformer_lens.hook_points", True),
    ("tracing.py", "from plateaulens import interventions", True),
    ("tracing.py", "from plateaulens import metrics", False),
    ("tracing.py", "from . import metrics", False),
    ("interventions/x.py", "from ..training import train", True),
    ("runs.py", "from plateaulens.runs.recording import record", True),
    ("recording.py", "from plateaulens.runs import Run", False),
    ("tasks/x.py", "from plateaulens.tasks.base import Task", False),
]


@pytest.mark.parametrize("path, source, forbidden", CASES)
def test_the_watchman_sees_trespassers(path, source, forbidden):
    assert bool(list(trespasses(Path(path), source))) == forbidden


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
