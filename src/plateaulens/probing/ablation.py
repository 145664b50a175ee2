"""Ablation of a feature: the effect of removing the directions that a probe reads, and of removing others.

    result = ablate_feature(model, eval_batch, "carry", probes, train=task.sample(1200, seed=2), fit=fit)
    result.table                                    # exact match, accuracy, loss: intact, ablated, controls
    ablate_feature(model, eval_batch, "carry", sites="blocks.1.hook_resid_post", method="nullspace", train=..., fit=fit)

arXiv 2505.03997 projects onto the decision hyperplane of each position's probe, and compares with Gaussian
directions. These have little of the variance of the activations, so that removing any direction with much variance has
a larger effect than the control. Two more controls are matched in variance: the same method applied to shuffled labels,
and random directions of equal variance. Where a feature's direction has most of the variance, these controls are nearly
the same direction and no comparison: `overlap` measures it, and the last control is orthogonal to the feature.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from plateaulens._registry import look_up
from plateaulens.batch import Batch
from plateaulens.hooks import device_of
from plateaulens.interventions import Project, intervene
from plateaulens.metrics.measuring import measure, resolve
from plateaulens.probing.edit_directions import (
    CONTROLS,
    METHODS,
    Control,
    EditDirections,
    FitData,
    Fitter,
    Method,
    hyperplanes,
    no_orthogonal_control,
    shared,
)
from plateaulens.probing.fitting import fit_logistic
from plateaulens.protocols import HookedModel, Metric
from plateaulens.tasks.base import REGRESSED_KINDS, Feature

RESAMPLES = 10_000  # bootstrap samples of the examples and of a control's draws

MethodName = Literal["hyperplane", "nullspace", "mean_difference"]
ControlName = Literal["gaussian", "shuffled", "variance", "orthogonal"]


@runtime_checkable
class SiteProbes(Protocol):
    """Linear probes at several sites, such as `Probes`."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Hook names."""
        ...

    @property
    def weights(self) -> Float[Tensor, "site offset label d_model"]:
        """W of each probe."""
        ...

    @property
    def biases(self) -> Float[Tensor, "site offset label"]:
        """B of each probe."""
        ...

    @property
    def train_loss(self) -> Float[np.ndarray, "site offset"]:
        """Training loss, by which sites are chosen."""
        ...


@dataclass(frozen=True, eq=False)
class OffsetProbes:
    """One linear probe w . x + b for each offset of a feature, at one site each.

    Attributes:
        sites: hook name for each offset.
        weights: w, for the states at the site; zeros where an offset has no probe.
        biases: b.
    """

    sites: tuple[str, ...]
    weights: Float[Tensor, "offset label d_model"]
    biases: Float[Tensor, "offset label"]

    @classmethod
    def best(cls, probes: SiteProbes, below: int | None = None) -> "OffsetProbes":
        """The probe of each offset at the site with the lowest training loss (arXiv 2505.03997).

        Args:
            probes: `Probes`, or another object with the same `sites`, `weights`, `biases` and `train_loss`.
            below: use only sites of layers below this one. An edit after the last layer affects only the prediction at
                its own position.

        Raises:
            ValueError: if no site is left.
        """
        allowed = [i for i, site in enumerate(probes.sites) if below is None or _layer(site) < below]
        if not allowed:
            raise ValueError(f"no probe is of a layer below {below}; they are at {', '.join(probes.sites)}")
        losses = torch.as_tensor(probes.train_loss)[allowed].nan_to_num(torch.inf)
        best = torch.tensor(allowed)[losses.argmin(0).cpu()]
        weights, biases = (torch.as_tensor(x)[best, torch.arange(len(best))] for x in (probes.weights, probes.biases))
        return cls(tuple(probes.sites[i] for i in best.tolist()), weights, biases)


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """Effect of removing a feature from a model, and of removing other directions.

    Attributes:
        feature: name of the feature.
        method: how it was removed.
        sites: hook name for each offset.
        values: metrics of each example: `intact` and `ablated` (measurement, example) and `controls` (control, draw,
            measurement, example); `overlap` and `variance` (control, draw), see `table`.
        table: for each metric a row with the intact model, and one with each control. `mean` is that of the row;
            `difference` is ablated - mean, with its 95 % interval from `low` to `high`; `as_far` is the share of the
            control's draws that are at least as far from the intact model, on the same side. Intervals are percentiles
            of 10,000 resamples of the examples and of the control's draws. Means over the draws of a control:
            `overlap` is the share of the removed directions that lies in the control's (mean over offsets), and
            `variance` is the variance that the control removes over that which the method removes (sums over offsets;
            NaN without `train`).
    """

    feature: str
    method: str
    sites: tuple[str, ...]
    values: xr.Dataset
    table: pd.DataFrame

    def to_dataset(self) -> xr.Dataset:
        """The ablation as one Dataset, which netCDF can hold."""
        table = self.table.to_xarray().to_array("column", name="table").rename({"with": "other"})
        table = table.assign_coords({name: list(map(str, table[name].values)) for name in ("column", "other")})
        values = xr.merge([self.values, table], join="left")  # keeps the order of the values
        return values.assign_attrs(feature=self.feature, method=self.method, sites=",".join(self.sites))

    @classmethod
    def from_dataset(cls, data: xr.Dataset) -> "Ablation":
        """The ablation that `to_dataset` returned."""
        values = data[[name for name in data if "other" not in data[name].dims]]
        order = [(m, other) for m in data.measurement.values for other in ["intact", *data.control.values]]
        index = pd.MultiIndex.from_tuples(order, names=["measurement", "with"])
        rows = [data.table.sel(measurement=m, other=other).values for m, other in order]
        table = pd.DataFrame(rows, index, list(map(str, data.column.values)))
        return cls(data.attrs["feature"], data.attrs["method"], tuple(data.attrs["sites"].split(",")), values, table)

    def __repr__(self) -> str:
        sizes = self.values.sizes
        head = f"{self.feature} removed by {self.method}: {len(self.sites)} offsets in {sizes['example']} examples"
        lines = [f"{head}, {sizes['draw']} draws a control"]
        for (metric, other), row in zip(self.table.index, self.table.values):
            mean, difference, low, high, as_far = row[:5]
            change = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            if other == "intact":
                lines.append(f"{metric} {mean:.3f} -> {mean + difference:.3f}: {change}")
            else:
                lines.append(f"    {other} {mean:.3f}: {change} from it, {as_far:.0%} of draws as far")
        for control in self.values.control.values:
            overlap, variance = self.table.xs(control, level="with")[["overlap", "variance"]].iloc[0]
            of_variance = "" if np.isnan(variance) else f", {variance:.2f} of the variance"
            lines.append(f"{control} takes {overlap:.0%} of the removed directions{of_variance}")
        return "\n".join(lines)


def ablate_feature(
    model: HookedModel,
    batch: Batch,
    feature: str | Callable[[Batch], Feature],
    probes: SiteProbes | OffsetProbes | None = None,
    *,
    method: MethodName | str = "hyperplane",
    sites: str | Sequence[str] | None = None,
    train: Batch | None = None,
    fit: Fitter | None = fit_logistic,
    k: int = 8,
    factor: float = 1.0,
    controls: Sequence[ControlName | str] | None = None,
    draws: int = 32,
    metrics: Sequence[str] = ("exact_match", "accuracy", "loss"),
    seed: int = 0,
    progress: bool = True,
) -> Ablation:
    r"""Remove a feature at all of its positions, in teacher forcing and in every step of decoding, and measure.

    With m and S the mean and the covariance of the training examples' states at an offset, the methods are:

    * "hyperplane": x <- x - \sum_v (u_v . x - t_v) u_v with u = w / |w| and t = -b / |w| of the probe (the paper's).
    * "nullspace": a probe is fitted, projected out and fitted again, `k` times (arXiv 2004.07667). Directions are
      orthonormal, and each t is that of its probe. With one label and k = 1 it is "hyperplane".
    * "mean_difference": u along Cov(x, label), which for a binary label is the difference of the class means;
      t = u . m. Several labels are removed together.

    A control has the same sites, positions and number of directions, and other directions:

    * "gaussian": Gaussian directions with the same t (the paper's), or t = u . m where the method is "mean_difference".
    * "shuffled": those that the method finds for labels shuffled among the examples.
    * "variance": R = orth(G S^a), G Gaussian, with the a for which tr(R S R') = tr(U S U'), so that as much variance is
      removed. t_R = R m - (U m - t), so that the mean moves as far. ("hyperplane" takes its rows one by one.)
    * "orthogonal": the same among directions orthogonal to all of U, with the nearest variance that these have.

    Args:
        model: the hooked model.
        batch: examples to measure, which no probe was fitted to.
        feature: name of a feature of the task, or a function from a batch to its feature.
        probes: probes that "hyperplane" removes, at the best site of each offset (`OffsetProbes.best`); the other
            methods use only these sites.
        method: one of the three above.
        sites: a hook name, or one for each offset, in place of `probes`; "hyperplane" then fits its own probes.
        train: the examples that probes are fitted to, and that m and S are of.
        fit: function from states [offset n d_model] and labels of 0 and 1 [offset n] to weights [offset d_model] and
            biases [offset]; logistic regression by default.
        k: number of fits of "nullspace".
        factor: length of the step along the directions; 1 reaches t.
        controls: names of controls, () for none. By default all, but "orthogonal" is left out with a warning where too
            many directions are removed.
        draws: draws of each control.
        metrics: names of metrics with one value an example.
        seed: seed of controls and resamples.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for an unknown feature, method, control or site; numbers with a method that fits probes of 0 and 1;
            probes and sites both or neither; a missing `train` or `fit`; probes with another number of offsets; a
            position out of reach; or a control "orthogonal" to too many directions.
    """
    find = look_up("method", method, METHODS)
    drawn = {name: look_up("control", name, CONTROLS) for name in (CONTROLS if controls is None else controls)}
    if (probes is None) == (sites is None) or draws < 1 or k < 1:
        raise ValueError("give either probes= or sites=, and k= and draws= of at least 1")
    name, located = _name(feature), _located(feature, batch)
    if probes is None:
        _check_kind(name, located.kind, method)
    offset_probes, edited_sites = _probes_and_sites(probes, sites, located.positions.shape[1], method)
    if train is None and (offset_probes is None or not {*drawn} <= {"gaussian"}):
        raise ValueError(f"{method} with controls {', '.join(drawn)} needs examples to fit to: give train=")
    data = None if train is None else FitData(model, train, _located(feature, train), edited_sites, fit, k)
    removal = _removal(model, find, offset_probes, data)
    drawn = _possible_controls(drawn, removal, required=controls is not None)
    edit = _Edit(model, batch, located.positions, edited_sites, factor, resolve(model, metrics, batch.task))
    random = torch.Generator().manual_seed(seed)
    with tqdm(total=2 + len(drawn) * draws, desc=f"{name} by {method}", unit="edit", disable=not progress) as bar:
        intact, ablated = edit.measure(None, bar), edit.measure(removal, bar)
        measured, shares = [], []
        for draw in (draw for draw in drawn.values() for _ in range(draws)):
            other = draw(removal, data, find, random)
            measured.append(edit.measure(other, bar))
            shares.append(shared(removal, other, data))
    values = _dataset(intact, ablated, measured, shares, list(drawn), draws, edit.metric_names)
    return Ablation(name, method, edited_sites, values, _compared(values, np.random.default_rng(seed)))


def _check_kind(name: str, kind: str, method: str) -> None:
    if kind in REGRESSED_KINDS and method != "mean_difference":
        raise ValueError(f"{name} is of kind {kind!r}: {method} fits probes of 0 and 1; take 'mean_difference'")


def _probes_and_sites(
    probes: SiteProbes | OffsetProbes | None, sites: str | Sequence[str] | None, offsets: int, method: str
) -> tuple[OffsetProbes | None, tuple[str, ...]]:
    """The probes that "hyperplane" removes, None if the method fits its own, and the site of each offset."""
    best = probes if probes is None or isinstance(probes, OffsetProbes) else OffsetProbes.best(probes)
    edited_sites = _sites(sites if best is None else best.sites, offsets)
    return (best if method == "hyperplane" else None), edited_sites


def _removal(model: HookedModel, find: Method, probes: OffsetProbes | None, data: FitData | None) -> EditDirections:
    """The directions to remove: those of the probes, or those that the method finds in the training data."""
    if probes is not None:
        device = device_of(model)
        return hyperplanes(probes.weights.to(device), probes.biases.to(device))
    assert data is not None  # `ablate_feature` has raised
    return find(data, data.labels)


def _possible_controls(drawn: dict[str, Control], removal: EditDirections, *, required: bool) -> dict[str, Control]:
    """The controls without "orthogonal" if it has too few dimensions: with a warning, or an error if required."""
    reason = no_orthogonal_control(removal) if "orthogonal" in drawn else ""
    if not reason:
        return drawn
    if required:
        raise ValueError(f"{reason}; leave 'orthogonal' out of controls=")
    warnings.warn(f"{reason}, which is left out", stacklevel=3)
    return {name: control for name, control in drawn.items() if name != "orthogonal"}


@dataclass(frozen=True, eq=False)
class _Edit:
    """What is measured, and where the model is edited."""

    model: HookedModel
    batch: Batch
    positions: Int[Tensor, "batch offset"]
    sites: tuple[str, ...]
    factor: float
    metrics: Sequence[Metric]

    @property
    def metric_names(self) -> list[str]:
        return [metric.__name__ for metric in self.metrics]

    def measure(self, directions: EditDirections | None, bar: tqdm) -> Float[Tensor, "measurement example"]:
        """The metrics of each example with the directions removed; of the intact model for None."""
        edits = [] if directions is None else _projections(directions, self.positions, self.sites, self.factor)
        with intervene(self.model, *edits):
            values = measure(self.model, self.batch, self.metrics, reduce=None)
        bar.update()
        return torch.stack([value.double().cpu() for value in values.values()])


def _dataset(
    intact: Float[Tensor, "measurement example"],
    ablated: Float[Tensor, "measurement example"],
    controls: Sequence[Float[Tensor, "measurement example"]],
    shares: Sequence[tuple[float, float]],
    names: list[str],
    draws: int,
    metrics: list[str],
) -> xr.Dataset:
    """`Ablation.values`; `controls` and `shares` are of the draws of each control in turn."""
    shape = (len(names), draws)
    every = (
        torch.stack([*controls]).view(*shape, *intact.shape) if controls else intact.new_zeros(*shape, *intact.shape)
    )
    overlap, variance = np.reshape(shares, (*shape, 2)).transpose(2, 0, 1)
    return xr.Dataset(
        {
            "intact": (("measurement", "example"), intact.numpy()),
            "ablated": (("measurement", "example"), ablated.numpy()),
            "controls": (("control", "draw", "measurement", "example"), every.numpy()),
            "overlap": (("control", "draw"), overlap),
            "variance": (("control", "draw"), variance),
        },
        coords={"measurement": metrics, "control": names},
    )


# Positions, edits, intervals.


def _name(feature: str | Callable[[Batch], Feature]) -> str:
    return feature if isinstance(feature, str) else getattr(feature, "__name__", "feature")


def _located(feature: str | Callable[[Batch], Feature], batch: Batch) -> Feature:
    """The feature of a batch.

    Raises:
        ValueError: if prompts have no feature, or if the model does not reach its positions.
    """
    if not isinstance(feature, str):
        located = feature(batch)
    elif batch.task is None:
        raise ValueError(f"language-model prompts have no feature {feature!r}; give a function of the batch")
    else:
        located = look_up(f"feature of {batch.task!r}", feature, batch.task.features(batch))
    if (last := int(located.positions.max())) >= (length := batch.inputs.shape[1]):
        raise ValueError(f"{_name(feature)} is read at position {last}, and the model runs on {length}")
    return located


def _sites(sites: str | Sequence[str] | None, offsets: int) -> tuple[str, ...]:
    names = (sites,) * offsets if isinstance(sites, str) else tuple(sites or ())
    if len(names) != offsets:
        raise ValueError(f"the feature has {offsets} offsets, and there are sites for {len(names)}")
    return names


def _layer(site: str) -> float:
    """The layer in a hook name; infinite after all layers."""
    kind, _, rest = site.partition(".")
    return float(rest.partition(".")[0]) if kind == "blocks" else torch.inf


def _projections(
    removal: EditDirections, positions: Int[Tensor, "batch offset"], sites: tuple[str, ...], factor: float
) -> list[Project]:
    """One edit a site, of the offsets that have a direction and an example."""
    used = (removal.there.any(1).cpu() & (positions >= 0).any(0).cpu()).tolist()
    edits = []
    for site in dict.fromkeys(sites):
        if offsets := [offset for offset, name in enumerate(sites) if name == site and used[offset]]:
            edits.append(Project(site, positions[:, offsets], removal.basis[offsets], removal.target[offsets], factor))
    if not edits:
        raise ValueError("there is nothing to remove: no offset has both a direction and an example")
    return edits


def _compared(values: xr.Dataset, rng: np.random.Generator) -> pd.DataFrame:
    """Differences of means, with intervals over examples and draws; examples without a value do not count."""
    examples, draws = (
        rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in (values.sizes["example"], values.sizes["draw"])
    )
    rows = {}
    for name in values.measurement.values:
        intact, ablated, controls = (values[x].sel(measurement=name).values for x in ("intact", "ablated", "controls"))
        measured = ~np.isnan(intact)
        before, after, weight = intact[measured], ablated[measured], examples[:, measured]
        rows[name, "intact"] = [*_gap(after, before[None], weight, np.ones((RESAMPLES, 1), int)), *[np.nan] * 3]
        change = after.mean() - before.mean()
        for control, drawn in zip(values.control.values, controls[..., measured]):
            as_far = (np.sign(change) * (drawn.mean(1) - before.mean()) >= abs(change)).mean()
            taken = [float(values[key].sel(control=control).mean()) for key in ("overlap", "variance")]
            rows[name, control] = [*_gap(after, drawn, weight, draws), as_far, *taken]
    columns = ["mean", "difference", "low", "high", "as_far", "overlap", "variance"]
    index = pd.MultiIndex.from_tuples(rows, names=["measurement", "with"])
    return pd.DataFrame(rows.values(), index=index, columns=columns)


def _gap(
    ablated: Float[np.ndarray, " example"],
    others: Float[np.ndarray, "draw example"],
    examples: Int[np.ndarray, "resample example"],
    draws: Int[np.ndarray, "resample draw"],
) -> list[float]:
    """The mean of `others`, the mean of ablated - others, and its 95 % interval.

    Args:
        ablated: values of the ablated model.
        others: values of what it is compared with.
        examples: how often each resample has each example.
        draws: how often each resample has each draw.
    """
    gaps = ablated - others
    means = ((draws @ gaps) * examples).sum(1) / (examples.sum(1) * draws.sum(1))
    return [float(x) for x in (others.mean(), gaps.mean(), *np.percentile(means, [2.5, 97.5]))]
