"""README, CONTRIBUTING and docs/: every Python snippet runs, every command parses, every link and module exists."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from plateaulens.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


@each_page
def test_commands_parse(page: Path):
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
    for line in "".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
            continue
        while words and "=" in words[0]:  # NAME=value before a command
            words = words[1:]
        if words[:1] == ["plateaulens"]:
            command: click.Command = main
            while isinstance(command, click.Group):
                name, words = words[1], words[1:]
                next_command = command.get_command(click.Context(command), name)
                assert next_command is not None, line
                command = next_command
            command.make_context(words[0], words[1:], resilient_parsing=False)


@each_page
def test_named_modules_and_linked_files_exist(page: Path):
    text = page.read_text()
    for script in re.findall(r"python (\S+\.py)", text):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"python -m (plateaulens[\w.]*)", text):
        assert find_spec(module), module
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link


def test_readme_has_snippets_and_commands():
    assert blocks(ROOT / "README.md", "python")
    assert blocks(ROOT / "README.md", "bash")
