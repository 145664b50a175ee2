"""Pages of sections, each with a title, a text and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from plateaulens.report.page import write_page


@dataclass(frozen=True)
class Section:
    """One section of a page.

    Attributes:
        title: Heading, or "" for none.
        text: A paragraph or a table in plain text.
        figure: The figure.
        min_width: Width in pixels below which the figure scrolls instead of shrinking, or 0 for none.
    """

    title: str
    text: str
    figure: go.Figure
    min_width: int = 0


def named_sections(sections: Sequence[Section]) -> dict[str, Section]:
    """The sections by the id of their figure's element on the page."""
    return {f"section-{i}": section for i, section in enumerate(sections)}


def write_sections(path: Path, title: str, sections: Sequence[Section], provenance: Mapping[str, str]) -> Path:
    """Write a page of sections with a table of its provenance; returns its path."""
    named = named_sections(sections)
    return write_page(
        path,
        "sections.html.j2",
        {name: section.figure for name, section in named.items()},
        title=title,
        headline={},
        sections=named,
        provenance=provenance,
    )
