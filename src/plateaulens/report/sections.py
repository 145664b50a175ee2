"""A page of sections, each a title, a figure and a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plateaulens.report.page import write_page


def write_sections(path: Path, title: str, sections: Sequence[Any], provenance: Mapping[str, str]) -> Path:
    """Write a page of `sections`, each with `title`, `said` and `figure`; returns its path."""
    named = {f"section-{i}": section for i, section in enumerate(sections)}
    return write_page(
        path,
        "sections.html.j2",
        {name: section.figure for name, section in named.items()},
        title=title,
        headline={},
        sections=named,
        provenance=provenance,
    )
