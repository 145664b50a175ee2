"""What `plateaulens probe` and `ablate` leave in the folder of a run, and how a page shows it.

    probes/carry.nc                     what `probe_over` returned; `xarray.load_dataset` reads it
    ablations/carry-hyperplane-420.nc   values and table of an `Ablation`
    probes/carry.html, ...              the page of each

Nothing is pickled, and every file is written under a temporary name and renamed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from plateaulens import plots
from plateaulens.analysis import Ablation, Plateau, find_plateau, quiet_or_loud
from plateaulens.files import write_whole
from plateaulens.report.page import write_page
from plateaulens.runs import Run

FOLDERS = ("probes", "ablations")
COLUMNS = ["mean", "difference", "low", "high", "as_far"]  # of an ablation's table
PROBED = """How well linear probes read the feature from the residual stream: test loss of the best layer, by
geometric mean over thirds of the places where it is looked for. Dotted: the untrained network, which is no chance
level. Quiet is what falls while the loss (grey: its plateau) does not."""
TOKENS = """ A probe of the visible tokens alone reaches {}: where that is low, a network need only attend to them
for the feature to be readable, and readable is not yet computed."""
ABLATED = """The feature's directions are taken out, in teacher forcing and in every step of decoding; so are, at
the same places, others that know nothing of it: random ones (Gaussian), those that the same method finds for
shuffled labels, and random ones that remove as much variance. Only an effect beyond all of these is about the
feature. Left: means, a dot for each draw of a control. Right: how far the ablated model is from each, with 95 %
intervals."""


@dataclass(frozen=True)
class Result:
    """A kept result as a page shows it."""

    name: str
    title: str
    note: str
    figure: go.Figure
    said: str
    options: dict[str, str]


def keep_probes(run: Run, over: xr.Dataset, **options: Any) -> Path:
    """Keep what `probe_over` found of the feature `over.attrs["feature"]`, with its page; returns the page.

    Args:
        run: whose folder it goes to.
        over: of one feature; an attribute `plateau`, two steps, stands in for `find_plateau`; `tokens`, three numbers,
            are the thirds of `probe_tokens`.
        options: how it was asked, for the page.
    """
    return _keep(run, Path("probes") / over.attrs["feature"], over, options)


def keep_ablation(run: Run, found: Ablation, step: int, **options: Any) -> Path:
    """Keep an `Ablation` of the model of `step`, with its page; returns the page."""
    table = found.table.to_xarray().rename({"with": "other"})
    table = table.assign_coords(other=list(map(str, table.other.values)))
    values = xr.merge([found.values, table], join="left")  # in the order of the values
    values.attrs = {"feature": found.feature, "method": found.method, "step": step, "sites": ",".join(found.sites)}
    return _keep(run, Path("ablations") / f"{found.feature}-{found.method}-{step}", values, options)


def results(run: Run) -> list[Result]:
    """All that was kept in the folder of a run.

    Raises:
        ValueError: for a damaged file.
    """
    return [_read(run, path) for folder in FOLDERS for path in sorted((run.path / folder).glob("*.nc"))]


def plateau_of(run: Any) -> Plateau | None:
    """The plateau where the task knows its loss levels and the loss was recorded, else None."""
    task = run.task
    known = task is not None and task.loss_plateau() is not None and task.loss_floor() is not None
    return find_plateau(run) if known and "loss" in run.metrics else None


def judged(run: Any, over: xr.Dataset) -> str:
    """The verdict of `quiet_or_loud` on the run's own plateau, or in a line why there is none."""
    steps, plateau = [int(step) for step in over.step.values], _plateau(run, over)
    if plateau is None:
        return "no verdict: where the plateau lies is not known; say it: --plateau 100-200"
    if plateau.start is None or plateau.drop is None:
        seen = "was not seen on its plateau" if plateau.start is None else "has not dropped"
        return f"no verdict: the loss {seen} (plateau {plateau.level:.4f})"
    end = plateau.drop if plateau.end is None else plateau.end
    on, after = [s for s in steps if plateau.start <= s < end], [s for s in steps if s >= plateau.drop]
    if not on or not after:
        where = f"from the drop on (step {plateau.drop})" if on else f"on the plateau (steps {plateau.start} to {end})"
        return f"no verdict: no probed step lies {where}; save more often (--save-every) or probe other --steps"
    return repr(quiet_or_loud(over, over.attrs["feature"], plateau_steps=on, after_step=after[-1]))


def concluded(table: pd.DataFrame, measurement: str = "exact_match") -> str:
    """In words what an ablation shows, going by the 95 % intervals of `Ablation.table`."""
    rows = table.loc[measurement]
    intact = rows.loc["intact"]
    low, high = intact.low, intact.high
    span = f"{intact.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    if low <= 0 <= high:
        return f"{measurement} does not change ({span}): nothing shows that the model uses these directions."
    changes = f"{measurement} changes by {span}"
    others = rows.drop("intact")
    if others.empty:
        return f"{changes}; without controls this says nothing of the feature."
    beyond = others.high < 0 if intact.difference < 0 else others.low > 0
    more, same = ", ".join(others.index[beyond]), ", ".join(others.index[~beyond])
    if not same:
        return f"{changes}, further than with every control ({more})."
    further = f", further than with {more} but" if more else ","
    return f"{changes}{further} no further than with {same}: directions that know nothing of the feature do as much."


# Files and pages.


def _keep(run: Run, name: Path, data: xr.Dataset, options: dict[str, Any]) -> Path:
    data = data.assign_attrs({f"option_{key}": str(value) for key, value in options.items()})
    path = run.path / name.parent / f"{name.name}.nc"
    write_whole(path, lambda p: data.to_netcdf(p, engine="scipy", format="NETCDF3_64BIT"))
    found = _read(run, path)
    return write_page(
        path.with_suffix(".html"),
        "result.html.j2",
        {found.name: found.figure},
        title=f"{run.config['task']['task']} · {run.path.name}",
        headline={},
        results=[found],
        provenance={"run": str(run.path), "file": path.name, **found.options},
    )


def _read(run: Run, path: Path) -> Result:
    try:
        data = xr.load_dataset(path, engine="scipy")
    except Exception as error:  # SciPy's reader has no error of its own: half a file fails wherever it ends
        raise ValueError(f"{path} is damaged ({error}); remove it, or make it again") from error
    figure, title, note, said = (_probes if path.parent.name == "probes" else _ablation)(run, data)
    options = {k.removeprefix("option_"): str(v) for k, v in data.attrs.items() if k.startswith("option_")}
    return Result(f"{path.parent.name}-{path.stem}", title, note, figure, said, options)


def _probes(run: Run, over: xr.Dataset) -> tuple[go.Figure, str, str, str]:
    metrics = run.metrics
    figure = plots.probes(over, metrics if "loss" in metrics else None, _plateau(run, over))
    seen = ", ".join(f"{loss:.4f}" for loss in over.attrs["tokens"]) if "tokens" in over.attrs else ""
    title = f"Is {over.attrs['feature']} there before the loss drops?"
    return figure, title, PROBED + (TOKENS.format(seen) if seen else ""), judged(run, over)


def _ablation(run: Run, data: xr.Dataset) -> tuple[go.Figure, str, str, str]:
    found = _ablation_of(data)
    title = f"Does the model need {found.feature}? ({found.method}, step {data.attrs['step']})"
    return plots.ablation(found), title, ABLATED, f"{concluded(found.table)}\n{found!r}"


def _ablation_of(data: xr.Dataset) -> Ablation:
    values = data[["intact", "ablated", "controls"]]
    order = [(m, other) for m in data.measurement.values for other in ["intact", *data.control.values]]
    index = pd.MultiIndex.from_tuples(order, names=["measurement", "with"])
    rows = [[float(data[c].sel(measurement=m, other=other)) for c in COLUMNS] for m, other in order]
    a = data.attrs
    return Ablation(a["feature"], a["method"], tuple(a["sites"].split(",")), values, pd.DataFrame(rows, index, COLUMNS))


def _plateau(run: Any, over: xr.Dataset) -> Plateau | None:
    """As told, or else as found."""
    if "plateau" not in over.attrs:
        return plateau_of(run)
    start, end = (int(step) for step in over.attrs["plateau"])
    return Plateau(start, end + 1, end + 1, np.nan, np.nan)
