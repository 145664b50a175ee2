"""What `plateaulens probe` and `ablate` leave in the folder of a run, and how a page shows it.

    probes/carry.nc                     what `probe_checkpoints` returned; `xarray.load_dataset` reads it
    ablations/carry-hyperplane-420.nc   values and table of an `Ablation`
    probes/carry.html, ...              the page of each

Nothing is pickled, and every file is written under a temporary name and renamed.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from plateaulens import plots
from plateaulens._io import write_atomically
from plateaulens.analysis.plateau import Plateau, find_plateau
from plateaulens.probing.ablation import Ablation
from plateaulens.probing.verdict import quiet_or_loud
from plateaulens.report.page import write_page
from plateaulens.runs.run import Run

FOLDERS = ("probes", "ablations")
NEAR = 0.05  # of its level, how far the loss on a plateau may be from it
IN_A_ROW = 3  # measurements, from which on a plateau stands
SHARED = 0.3  # of the removed directions, what a control may contain and still be a comparison
PROBED = """How well linear probes read the feature from the residual stream: test loss of the best layer, by
geometric mean over thirds of the places where it is looked for. Dotted: the untrained network, which is no chance
level. Quiet is what falls while the loss (gray: its plateau) does not."""
TOKENS = """ A probe of the visible tokens alone reaches {}: where that is low, a network need only attend to them
for the feature to be readable, and readable is not yet computed."""
ABLATED = """The feature's directions are taken out, in teacher forcing and in every step of decoding; so are, at
the same places, others that know nothing of it: random ones (Gaussian), those that the same method finds for
shuffled labels, and random ones that remove as much variance, or nearly as much and none of the feature's directions
(orthogonal). Only an effect beyond all of these is about the feature, but for those that contain much of its
directions and are no comparison. Left: means, a dot for each draw of a control. Right: how far the ablated model is
from each, with 95 % intervals."""


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
    """Keep what `probe_checkpoints` found of the feature `over.attrs["feature"]`, with its page; returns the page.

    Args:
        run: whose folder it goes to.
        over: of one feature; an attribute `plateau`, two steps, stands in for `find_plateau`; `tokens`, three numbers,
            are the thirds of `probe_tokens`.
        options: how it was asked, for the page.
    """
    return _keep(run, Path("probes") / over.attrs["feature"], over, options)


def keep_ablation(run: Run, found: Ablation, step: int, **options: Any) -> Path:
    """Keep an `Ablation` of the model of `step`, with its page; returns the page."""
    table = found.table.to_xarray().to_array("column", name="table").rename({"with": "other"})
    table = table.assign_coords({name: list(map(str, table[name].values)) for name in ("column", "other")})
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
    """The verdict of `quiet_or_loud` on the run's own plateau, or in a line why there is none.

    Any curve that comes down passes its level. Plateau steps are therefore the probed ones at which the plateau
    stands: between `start` and `end` or `drop` of `find_plateau`, in a stretch of at least three measurements in a row
    with the loss within 5 % of the level. Without such a stretch there is no verdict. (Three in a row say little of a
    loss that is measured at every step.) A plateau told by hand is taken as it is.
    """
    steps, plateau = [int(step) for step in over.step.values], _plateau(run, over)
    if plateau is None:
        return "no verdict: where the plateau lies is not known; say it: --plateau 100-200"
    if plateau.start is None or plateau.drop is None:
        seen = "was not seen on its plateau" if plateau.start is None else "has not dropped"
        return f"no verdict: the loss {seen} (plateau {plateau.level:.4f})"
    if not (stands := _stands(run, over, plateau)):
        told = f"fewer than {IN_A_ROW} measurements in a row are within {NEAR:.0%} of it before it leaves"
        return f"no verdict: the loss runs through its level (plateau {plateau.level:.4f}): {told}"
    on = [step for step in steps if any(first <= step <= last for first, last in stands)]
    after = [step for step in steps if step >= plateau.drop]
    if not on or not after:
        spans = ", ".join(f"{first} to {last}" for first, last in stands)
        where = f"from the drop on (step {plateau.drop})" if on else f"on the plateau (steps {spans})"
        return f"no verdict: no probed step lies {where}; save more often (--save-every) or probe other --steps"
    return repr(quiet_or_loud(over, over.attrs["feature"], plateau_steps=on, after_step=after[-1]))


def concluded(table: pd.DataFrame, measurement: str = "exact_match") -> str:
    """In words what an ablation shows, going by the 95 % intervals of `Ablation.table`.

    Where the intact model scores 0, nothing could fall: `loss` is judged in place of `measurement`. A control whose
    directions contain more than three tenths of the removed ones removes the feature too, and is no comparison.
    """
    if (telling := _telling(table, measurement)) != measurement:
        return f"{measurement} is 0 to begin with; look at the loss: {concluded(table, telling)}"
    rows = table.loc[measurement]
    intact, others = rows.loc["intact"], rows.drop("intact")
    low, high = intact.low, intact.high
    span = f"{intact.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    if intact["mean"] == 0:
        return f"{measurement} is 0 to begin with; look at the loss, which was not measured."
    if low <= 0 <= high:
        return f"{measurement} does not change ({span}): nothing shows that the model uses these directions."
    changes = f"{measurement} changes by {span}"
    batch_by_length = others.overlap[others.overlap > SHARED]
    aside = "".join(
        f" {name} shares {share:.0%} of the directions: no comparison." for name, share in batch_by_length.items()
    )
    others = others.drop(batch_by_length.index)
    if others.empty:
        return f"{changes}; without controls this says nothing of the feature.{aside}"
    beyond = others.high < 0 if intact.difference < 0 else others.low > 0
    more, same = ", ".join(others.index[beyond]), ", ".join(others.index[~beyond])
    if not same:
        variance = others.variance.max()  # of less of it, less is to be expected
        more += "" if np.isnan(variance) else f"; these remove up to {variance:.0%} as much variance"
        return f"{changes}, further than with every {'other ' if aside else ''}control ({more}).{aside}"
    further = f", further than with {more} but" if more else ","
    same += ": directions that know nothing of the feature do as much"
    return f"{changes}{further} no further than with {same}.{aside}"


def _stands(run: Any, over: xr.Dataset, plateau: Plateau) -> list[tuple[int, int]]:
    """First and last step of each stretch in which the plateau stands, see `judged`; none before there is a drop."""
    if plateau.start is None or plateau.drop is None:
        return []
    if "plateau" in over.attrs:
        return [(plateau.start, plateau.drop - 1)]
    end = plateau.drop if plateau.end is None else min(plateau.end, plateau.drop)
    on = run.metrics.loss.dropna().loc[plateau.start : end - 1]
    near = (on / plateau.level - 1).abs() <= NEAR
    breaks = (~near).cumsum()[near]  # alike in a stretch
    return [(int(s.index[0]), int(s.index[-1])) for _, s in breaks.groupby(breaks) if len(s) >= IN_A_ROW]


def _telling(table: pd.DataFrame, measurement: str = "exact_match") -> str:
    """The measurement, or the loss where it was measured and the other is 0 already."""
    floored = table.loc[(measurement, "intact"), "mean"] == 0
    return "loss" if floored and "loss" in table.index.get_level_values(0) else measurement


# Files and pages.


def _keep(run: Run, name: Path, data: xr.Dataset, options: dict[str, Any]) -> Path:
    data = data.assign_attrs({f"option_{key}": str(value) for key, value in options.items()})
    path = run.path / name.parent / f"{name.name}.nc"
    write_atomically(path, lambda p: data.to_netcdf(p, engine="scipy", format="NETCDF3_64BIT"))
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
    if path.parent.name == "ablations" and "table" not in data:
        raise ValueError(f"{path} is of an older version; remove it, or make it again")
    figure, title, note, said = (_probes if path.parent.name == "probes" else _ablation)(run, data)
    options = {k.removeprefix("option_"): str(v) for k, v in data.attrs.items() if k.startswith("option_")}
    return Result(f"{path.parent.name}-{path.stem}", title, note, figure, said, options)


def _probes(run: Any, over: xr.Dataset) -> tuple[go.Figure, str, str, str]:
    metrics, plateau = run.metrics, _plateau(run, over)
    if plateau is not None and plateau.drop is not None and not _stands(run, over, plateau):
        plateau = replace(plateau, start=None)  # its level is drawn, and no plateau where the verdict sees none
    figure = plots.probes(over, metrics if "loss" in metrics else None, plateau)
    seen = ", ".join(f"{loss:.4f}" for loss in over.attrs["tokens"]) if "tokens" in over.attrs else ""
    title = f"Is {over.attrs['feature']} there before the loss drops?"
    return figure, title, PROBED + (TOKENS.format(seen) if seen else ""), judged(run, over)


def _ablation(run: Run, data: xr.Dataset) -> tuple[go.Figure, str, str, str]:
    found = _ablation_of(data)
    title = f"Does the model need {found.feature}? ({found.method}, step {data.attrs['step']})"
    return plots.ablation(found, _telling(found.table)), title, ABLATED, f"{concluded(found.table)}\n{found!r}"


def _ablation_of(data: xr.Dataset) -> Ablation:
    values = data[[name for name in data if "other" not in data[name].dims]]
    order = [(m, other) for m in data.measurement.values for other in ["intact", *data.control.values]]
    index = pd.MultiIndex.from_tuples(order, names=["measurement", "with"])
    rows = [data.table.sel(measurement=m, other=other).values for m, other in order]
    table = pd.DataFrame(rows, index, list(map(str, data.column.values)))
    a = data.attrs
    return Ablation(a["feature"], a["method"], tuple(a["sites"].split(",")), values, table)


def _plateau(run: Any, over: xr.Dataset) -> Plateau | None:
    """As told, or else as found."""
    if "plateau" not in over.attrs:
        return plateau_of(run)
    start, end = (int(step) for step in over.attrs["plateau"])
    return Plateau(start, end + 1, end + 1, np.nan, np.nan)
