"""Self-contained HTML pages of figures, readable offline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from plateaulens._io import write_atomically


def write_page(path: Path, template: str, figures: Mapping[str, go.Figure], **values: Any) -> Path:
    """Render a template with figures into `path`, atomically.

    Args:
        path: File to write.
        template: Name of a template of this package.
        figures: Figures by the id of their element on the page.
        values: More variables of the template.

    Returns:
        The path.
    """
    page = Environment(loader=PackageLoader("plateaulens.report"), autoescape=True).get_template(template)
    html = page.render(figures={name: _json(f) for name, f in figures.items()}, plotly=get_plotlyjs(), **values)
    write_atomically(path, lambda p: p.write_text(html, encoding="utf-8"))
    return path


def _json(figure: go.Figure) -> str:
    """A figure as JSON that is safe inside a script element of HTML."""
    return str(figure.to_json()).replace("<", "\\u003c")
