"""Results of `plateaulens probe` and `ablate` in the folder of a run, and the pages that show them.

    probes/carry.nc                     the Dataset of `probe_checkpoints`; `xarray.load_dataset` reads it
    ablations/carry-hyperplane-420.nc   values and table of an `Ablation`
    probes/carry.html, ...              a page for each

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
from plateaulens.analysis.plateau import HasMetrics, Plateau, find_plateau
from plateaulens.probing.ablation import Ablation
from plateaulens.probing.verdict import quiet_or_loud
from plateaulens.report.page import write_page
from plateaulens.runs.run import Run

FOLDERS = ("probes", "ablations")
MAX_OVERLAP = 0.3  # share of the removed directions above which a control is no comparison
PROBES_NOTE = """How well linear probes read the feature from the residual stream: test loss at the best layer,
geometric mean over thirds of the offsets. Dotted: probes of the untrained network, which are better than chance. A
feature is quiet if its loss falls while the model's loss is on its plateau (gray)."""
TOKENS_NOTE = """ A probe of the visible tokens alone reaches {}: where that is low, a network that only attends to
these tokens makes the feature readable without computing it."""
ABLATION_NOTE = """The directions of the feature are removed, in teacher forcing and in every step of decoding. Controls
remove other directions at the same positions: random ones (gaussian), those that the same method finds for shuffled
labels (shuffled), random ones with as much variance (variance), and random ones orthogonal to the feature's directions
with nearly as much variance (orthogonal). Only an effect larger than that of all controls is evidence for the feature;
a control that contains much of the feature's directions is no comparison. Left: means, and a dot for each draw of a
control. Right: difference of the ablated model to each, with 95 % intervals."""


@dataclass(frozen=True)
class KeptResult:
    """A result in the folder of a run, as a page shows it.

    Attributes:
        name: identifier of the figure on the page.
        title: heading.
        note: explanation of the figure.
        figure: the figure.
        conclusion: what follows from the result, and its numbers.
        options: options of the command.
    """

    name: str
    title: str
    note: str
    figure: go.Figure
    conclusion: str
    options: dict[str, str]


def keep_probes(run: Run, probes: xr.Dataset, **options: Any) -> Path:
    """Write the result of `probe_checkpoints` and its page to the folder of a run; returns the path of the page.

    Args:
        run: the run that was probed.
        probes: the probes of the feature `probes.attrs["feature"]`. An attribute `plateau`, first and last step,
            replaces `find_plateau`; `tokens` has the test losses of `probe_tokens` over thirds.
        options: options of the command, shown on the page.
    """
    return _keep(run, Path("probes") / probes.attrs["feature"], probes, options)


def keep_ablation(run: Run, ablation: Ablation, step: int, **options: Any) -> Path:
    """Write an `Ablation` of the model of `step` and its page to the folder of a run; returns the path of the page."""
    values = ablation.to_dataset().assign_attrs(step=step)
    return _keep(run, Path("ablations") / f"{ablation.feature}-{ablation.method}-{step}", values, options)


def results(run: Run) -> list[KeptResult]:
    """All results of probes and ablations in the folder of a run.

    Raises:
        ValueError: for a damaged file.
    """
    return [_read(run, path) for folder in FOLDERS for path in sorted((run.path / folder).glob("*.nc"))]


def plateau_of(run: HasMetrics) -> Plateau | None:
    """The plateau of a run whose task knows its loss levels and whose loss was recorded, else None."""
    task = getattr(run, "task", None)
    known = task is not None and task.loss_plateau() is not None and task.loss_floor() is not None
    return find_plateau(run) if known and "loss" in run.metrics else None


def probes_text(run: HasMetrics, probes: xr.Dataset) -> str:
    """The verdict of `quiet_or_loud` on the plateau of the run, or one line that says why there is none.

    Plateau steps are the probed steps within the `stretches` of the run's `Plateau`, so that a loss which only passes
    through the plateau's level has no verdict. The steps of a plateau that was given by hand are taken as they are.
    """
    plateau = _plateau(run, probes)
    if plateau is None:
        return "no verdict: the level of the plateau is not known for this task; give its steps: --plateau 100-200"
    if plateau.start is None or plateau.drop is None:
        missing = "never reaches its plateau" if plateau.start is None else "has not dropped"
        return f"no verdict: the loss {missing} (plateau {plateau.level:.4f})"
    stretches = _stretches(run, probes, plateau)
    if not stretches:
        rule = plateau.rule
        return (
            f"no verdict: the loss passes through its plateau's level {plateau.level:.4f}: fewer than "
            f"{rule.consecutive} measurements in a row are within {rule.tolerance:.0%} of it before the loss leaves it"
        )
    return _verdict_text(probes, stretches, plateau.drop)


def _verdict_text(probes: xr.Dataset, stretches: list[tuple[int, int]], drop: int) -> str:
    """The verdict by the probed steps on the stretches and after the drop, or why there is none."""
    steps = [int(step) for step in probes.step.values]
    plateau_steps = [step for step in steps if any(first <= step <= last for first, last in stretches)]
    after = [step for step in steps if step >= drop]
    if plateau_steps and after:
        return repr(quiet_or_loud(probes, probes.attrs["feature"], plateau_steps=plateau_steps, after_step=after[-1]))
    spans = ", ".join(f"{first} to {last}" for first, last in stretches)
    missing = f"from the drop on (step {drop})" if plateau_steps else f"on the plateau (steps {spans})"
    return f"no verdict: no probed step is {missing}; save more often (--save-every) or probe other --steps"


def ablation_text(table: pd.DataFrame, metric: str = "exact_match") -> str:
    """What follows from an ablation, by the 95 % intervals of `Ablation.table`.

    Where the metric of the intact model is 0 it cannot fall, and `loss` is judged instead. A control with more than
    three tenths of the removed directions removes the feature too, and is no comparison.
    """
    if (judged_metric := _judged_metric(table, metric)) != metric:
        return f"{metric} is 0 to begin with; look at the loss: {ablation_text(table, judged_metric)}"
    rows = table.loc[metric]
    intact, controls = rows.loc["intact"].to_dict(), rows.drop("intact")
    change = f"{intact['difference']:+.3f} [{intact['low']:+.3f}, {intact['high']:+.3f}]"
    if intact["mean"] == 0:
        return f"{metric} is 0 to begin with; look at the loss, which was not measured."
    if intact["low"] <= 0 <= intact["high"]:
        return f"{metric} does not change ({change}): no evidence that the model uses these directions."
    overlapping = controls.overlap[controls.overlap > MAX_OVERLAP]
    excluded = "".join(
        f" {name} shares {share:.0%} of the directions: no comparison." for name, share in overlapping.items()
    )
    controls = controls.drop(overlapping.index)
    if controls.empty:
        return f"{metric} changes by {change}; without controls this is no evidence for the feature.{excluded}"
    beyond = controls.high < 0 if intact["difference"] < 0 else controls.low > 0
    exceeded, others = ", ".join(controls.index[beyond]), ", ".join(controls.index[~beyond])
    if not others:
        variance = controls.variance.max()  # a smaller effect is expected of less variance
        exceeded += "" if np.isnan(variance) else f"; these remove up to {variance:.0%} as much variance"
        every = "every other control" if excluded else "every control"
        return f"{metric} changes by {change}, further than with {every} ({exceeded}).{excluded}"
    further = f", further than with {exceeded} but" if exceeded else ","
    return (
        f"{metric} changes by {change}{further} no further than with {others}: directions that are unrelated to the "
        f"feature have the same effect.{excluded}"
    )


def _stretches(run: HasMetrics, probes: xr.Dataset, plateau: Plateau) -> list[tuple[int, int]]:
    """First and last step of each stretch on the plateau: by its rule, or as given by hand."""
    if "plateau" in probes.attrs and plateau.start is not None and plateau.drop is not None:
        return [(plateau.start, plateau.drop - 1)]
    return plateau.stretches(run.metrics.loss)


def _judged_metric(table: pd.DataFrame, metric: str = "exact_match") -> str:
    """The metric, or "loss" where that was measured and the metric of the intact model is 0."""
    at_zero = table.loc[(metric, "intact"), "mean"] == 0
    return "loss" if at_zero and "loss" in table.index.get_level_values(0) else metric


# Files and pages.


def _keep(run: Run, name: Path, data: xr.Dataset, options: dict[str, Any]) -> Path:
    data = data.assign_attrs({f"option_{key}": str(value) for key, value in options.items()})
    path = run.path / name.parent / f"{name.name}.nc"
    write_atomically(path, lambda p: data.to_netcdf(p, engine="scipy", format="NETCDF3_64BIT"))
    result = _read(run, path)
    return write_page(
        path.with_suffix(".html"),
        "result.html.j2",
        {result.name: result.figure},
        title=f"{run.config['task']['task']} · {run.path.name}",
        headline={},
        results=[result],
        provenance={"run": str(run.path), "file": path.name, **result.options},
    )


def _read(run: Run, path: Path) -> KeptResult:
    try:
        data = xr.load_dataset(path, engine="scipy")
    except Exception as error:  # SciPy's reader raises different errors, depending on where a file was cut off
        raise ValueError(f"{path} is damaged ({error}); remove it, or make it again") from error
    if path.parent.name == "ablations" and "table" not in data:
        raise ValueError(f"{path} is of an older version; remove it, or make it again")
    figure, title, note, conclusion = (_probes if path.parent.name == "probes" else _ablation)(run, data)
    options = {k.removeprefix("option_"): str(v) for k, v in data.attrs.items() if k.startswith("option_")}
    return KeptResult(f"{path.parent.name}-{path.stem}", title, note, figure, conclusion, options)


def _probes(run: HasMetrics, probes: xr.Dataset) -> tuple[go.Figure, str, str, str]:
    """Figure, title, note and conclusion of probes."""
    metrics, plateau = run.metrics, _plateau(run, probes)
    if plateau is not None and plateau.drop is not None and not _stretches(run, probes, plateau):
        plateau = replace(plateau, start=None)  # draws its level, but no plateau where the verdict has none
    figure = plots.probes(probes, metrics if "loss" in metrics else None, plateau)
    losses = ", ".join(f"{loss:.4f}" for loss in probes.attrs.get("tokens", ()))
    title = f"Is {probes.attrs['feature']} readable before the loss drops?"
    return figure, title, PROBES_NOTE + (TOKENS_NOTE.format(losses) if losses else ""), probes_text(run, probes)


def _ablation(run: HasMetrics, data: xr.Dataset) -> tuple[go.Figure, str, str, str]:
    """Figure, title, note and conclusion of an ablation."""
    ablation = Ablation.from_dataset(data)
    title = f"Does the model need {ablation.feature}? ({ablation.method}, step {data.attrs['step']})"
    figure = plots.ablation(ablation, _judged_metric(ablation.table))
    return figure, title, ABLATION_NOTE, f"{ablation_text(ablation.table)}\n{ablation!r}"


def _plateau(run: HasMetrics, probes: xr.Dataset) -> Plateau | None:
    """The plateau given by hand, or else the one found in the run."""
    if "plateau" not in probes.attrs:
        return plateau_of(run)
    start, end = (int(step) for step in probes.attrs["plateau"])
    return Plateau(start, end + 1, end + 1, np.nan, np.nan)
