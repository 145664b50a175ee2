"""The figures of docs/tasks.

    python -m plateaulens.papers.abrupt_learning.task_figures runs/plateau docs/tasks

NAME.png is drawn from the runs NAME-0, NAME-1, ... It needs Chromium, which renders the figures.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import plotly.graph_objects as go

from plateaulens import plots
from plateaulens.runs.run import Run


def main(runs: str, out: str) -> None:
    """Draw the training curves of all seeds of each name in the folder `runs`, into PNG files in the folder `out`."""
    names = sorted({re.sub(r"-\d+$", "", path.parent.name) for path in Path(runs).glob("*/run.json")})
    for name in names:
        seeds = [Run(path.parent) for path in sorted(Path(runs).glob(f"{name}-[0-9]*/run.json"))]
        seeds = [run for run in seeds if re.fullmatch(rf"{name}-\d+", run.path.name)]
        figure = plots.seeds({name: seeds}).update_layout(paper_bgcolor="white", width=900)
        picture(figure, Path(out) / f"{name}.png")
        sys.stdout.write(f"{out}/{name}.png: {len(seeds)} runs\n")


def picture(figure: go.Figure, path: Path) -> None:
    """Write the figure to a PNG file, rendered by Chromium."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        figure.write_html(page, config={"displayModeBar": False})
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/c"]
        size = f"--window-size=920,{int(figure.layout.height) + 20}"
        shot = f"--screenshot={path.resolve()}"
        command = ["chromium", *flags, "--virtual-time-budget=9000", size, shot, page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
