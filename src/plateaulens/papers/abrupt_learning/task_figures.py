"""The figures of docs/tasks: `python docs/figures.py runs/plateau docs/tasks`.

NAME.png is drawn from the runs NAME-0, NAME-1, ... Needs Chromium, which takes the pictures.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import plotly.graph_objects as go

import plateaulens as pl


def main(runs: str, out: str) -> None:
    """One picture a name: the standard curves of all its seeds."""
    names = sorted({re.sub(r"-\d+$", "", path.parent.name) for path in Path(runs).glob("*/run.json")})
    for name in names:
        seeds = [pl.Run(path.parent) for path in sorted(Path(runs).glob(f"{name}-[0-9]*/run.json"))]
        seeds = [run for run in seeds if re.fullmatch(rf"{name}-\d+", run.path.name)]
        figure = pl.plots.seeds({name: seeds}).update_layout(paper_bgcolor="white", width=900)
        picture(figure, Path(out) / f"{name}.png")
        sys.stdout.write(f"{out}/{name}.png: {len(seeds)} runs\n")


def picture(figure: go.Figure, path: Path) -> None:
    """The figure as a PNG, as Chromium shows it."""
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
