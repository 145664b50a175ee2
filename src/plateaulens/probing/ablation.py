"""Ablation of a feature: what a model loses with the directions that a probe reads, and with others like them.

    result = ablate_feature(model, eval_batch, "carry", probes, train=task.sample(1200, seed=2), fit=fit)
    result.table                                    # exact match, accuracy, loss: intact, ablated, controls
    ablate_feature(model, eval_batch, "carry", sites="blocks.1.hook_resid_post", method="nullspace", train=..., fit=fit)

arXiv 2505.03997 projects onto the decision hyperplane of each position's probe, and compares with Gaussian
directions. Those carry little of what activations vary in, so that the loss of any direction that does vary looks
like the loss of the feature. Two more controls are matched in that: the same method applied to shuffled labels, and
random directions of equal variance. Where a feature's direction has most of the variance, these are nearly that
direction themselves and no comparison: `overlap` says how nearly, and the last control is orthogonal to it.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    EditDirections,
    FitData,
    Fitter,
    hyperplanes,
    no_room_beside,
    shared,
)
from plateaulens.probing.fitting import fit_logistic
from plateaulens.tasks.base import REGRESSED_KINDS, Feature

RESAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Directions:
    """What is removed: for each offset of a feature the probe of one site, w . x + b.

    Attributes:
        sites: of each offset.
        weights: w, for the states as they are at the site; zeros where an offset has no probe.
        biases: b.
    """

    sites: tuple[str, ...]
    weights: Float[Tensor, "offset label d_model"]
    biases: Float[Tensor, "offset label"]

    @classmethod
    def of(cls, probes: Any, below: int | None = None) -> "Directions":
        """Each offset's probe at the site of the lowest train loss (arXiv 2505.03997).

        Args:
            probes: with `sites`, `weights` [site offset label d_model], `biases` [site offset label] and
                `train_loss` [site offset].
            below: only sites of layers below this one. An edit behind the last layer reaches the read-out of its
                own position and nothing else.

        Raises:
            ValueError: when no site is left.
        """
        known = [i for i, site in enumerate(probes.sites) if below is None or _layer(site) < below]
        if not known:
            raise ValueError(f"no probe is of a layer below {below}; they are at {', '.join(probes.sites)}")
        losses = torch.as_tensor(probes.train_loss)[known].nan_to_num(torch.inf)
        best = torch.tensor(known)[losses.argmin(0).cpu()]
        weights, biases = (torch.as_tensor(x)[best, torch.arange(len(best))] for x in (probes.weights, probes.biases))
        return cls(tuple(probes.sites[i] for i in best.tolist()), weights, biases)


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """What became of a model without a feature.

    Attributes:
        feature: which.
        method: how it was removed.
        sites: where, offset by offset.
        values: of each example, `intact` and `ablated` (measurement, example) and `controls` (control, draw,
            measurement, example).
        table: for each measurement, what `ablated` is compared `with`: the `mean` of that; the `difference`,
            ablated - that, with its 95 % interval from `low` to `high`; and of controls which share of the draws
            went at least `as_far` from the intact model, to the same side. Intervals are percentiles of 10,000
            resamples of the examples, and of a control's draws at the same time. And of controls, in the mean over
            draws, the `overlap`: which share of the removed directions lies in theirs (mean over offsets); and the
            `variance` that they take over that which the method takes (sums over offsets; NaN without `train`).
    """

    feature: str
    method: str
    sites: tuple[str, ...]
    values: xr.Dataset
    table: pd.DataFrame

    def __repr__(self) -> str:
        sizes = self.values.sizes
        head = f"{self.feature} removed by {self.method}: {len(self.sites)} places in {sizes['example']} examples"
        lines = [f"{head}, {sizes['draw']} draws a control"]
        for (name, other), row in zip(self.table.index, self.table.values):
            mean, gap, low, high, as_far = row[:5]
            said = f"{gap:+.3f} [{low:+.3f}, {high:+.3f}]"
            if other == "intact":
                lines.append(f"{name} {mean:.3f} -> {mean + gap:.3f}: {said}")
            else:
                lines.append(f"    {other} {mean:.3f}: {said} from it, {as_far:.0%} of draws as far")
        for control in self.values.control.values:
            overlap, variance = self.table.xs(control, level="with")[["overlap", "variance"]].iloc[0]
            of_all = "" if np.isnan(variance) else f", {variance:.2f} of the variance"
            lines.append(f"{control} takes {overlap:.0%} of the removed directions{of_all}")
        return "\n".join(lines)


def ablate_feature(
    model: Any,
    batch: Batch,
    feature: str | Callable[[Batch], Feature],
    probes: Any = None,
    *,
    method: str = "hyperplane",
    sites: str | Sequence[str] | None = None,
    train: Batch | None = None,
    fit: Fitter | None = fit_logistic,
    k: int = 8,
    factor: float = 1.0,
    controls: Sequence[str] | None = None,
    draws: int = 32,
    metrics: Sequence[str] = ("exact_match", "accuracy", "loss"),
    seed: int = 0,
    progress: bool = True,
) -> Ablation:
    r"""Remove a feature at all of its positions, in teacher forcing and in every step of decoding, and measure.

    With m and S the mean and the covariance of the training examples' states at an offset, the methods are:

    * "hyperplane": x <- x - \sum_v (u_v . x - t_v) u_v with u = w / |w| and t = -b / |w| of the probe (the paper's).
    * "nullspace": a probe is fitted, projected out and fitted again, `k` times (arXiv 2004.07667). Directions are
      orthonormal, and each t is that of its probe: of one label and with k = 1 it is "hyperplane".
    * "mean_difference": u along Cov(x, label), which for a binary label is the difference of the class means;
      t = u . m. Several labels are removed together.

    A control keeps sites, positions and the number of directions at each, and takes other directions:

    * "gaussian": from a Gaussian, with the same t (the paper's), or t = u . m where the method is "mean_difference".
    * "shuffled": what the method finds with labels shuffled among the examples.
    * "variance": R = orth(G S^a), G from a Gaussian, with the a for which tr(R S R') = tr(U S U'): as much variance
      is removed. t_R = R m - (U m - t): the mean is moved as far. ("hyperplane" takes its rows one by one.)
    * "orthogonal": the same among directions orthogonal to all of U, with the nearest variance that these have.

    Args:
        model: any hooked model.
        batch: examples to measure, best ones that no probe was fitted to.
        feature: a name of the task's, or a function from a batch to its feature.
        probes: `Directions`, or what `Directions.of` takes: "hyperplane" removes them, the others take their sites.
        method: of the three above.
        sites: where, without probes: a hook name, or one for each offset. "hyperplane" then fits its own.
        train: the examples that probes are fitted to, and that m and S are of.
        fit: how: from states [offset n d_model] and labels [offset n] to weights [offset d_model], biases [offset];
            of 0 and 1 by logistic regression unless given.
        k: how often "nullspace" fits.
        factor: how far to go along the directions.
        controls: which, () for a quick look; all unless given, but for "orthogonal" where so many directions leave too
            few dimensions for it, with a warning.
        draws: of each control.
        metrics: measurements of one value a prompt.
        seed: of controls and resamples.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for an unknown feature, method, control or site, numbers where probes of 0 and 1 are fitted, probes
            and sites both or neither, a `train` or `fit` that is needed and missing, probes of another number of
            offsets, a position out of reach, or a control "orthogonal" to too many directions.
    """
    find = look_up("method", method, METHODS)
    asked = CONTROLS if controls is None else controls
    drawn = {control: look_up("control", control, CONTROLS) for control in asked}
    if (probes is None) == (sites is None) or draws < 1 or k < 1:
        raise ValueError("give either probes= or sites=, and k= and draws= of at least 1")
    name, places = _named(feature), _placed(feature, batch)
    if places.kind in REGRESSED_KINDS and probes is None and method != "mean_difference":
        raise ValueError(f"{name} is of kind {places.kind!r}: {method} fits probes of 0 and 1; take 'mean_difference'")
    given = probes if probes is None or isinstance(probes, Directions) else Directions.of(probes)
    where = _sites(given.sites if given is not None else sites, places.positions.shape[1])
    ready = given is not None and method == "hyperplane"
    if train is None and not (ready and {*drawn} <= {"gaussian"}):
        raise ValueError(f"{method} with controls {', '.join(drawn)} needs examples to fit to: give train=")
    known = None if train is None else FitData(model, train, _placed(feature, train), where, fit, k)
    if ready:
        assert given is not None
        removal = hyperplanes(*(x.to(device_of(model)) for x in (given.weights, given.biases)))
    else:
        assert known is not None
        removal = find(known, known.labels)
    if "orthogonal" in drawn and (why := no_room_beside(removal)):
        if controls is not None:
            raise ValueError(f"{why}; leave 'orthogonal' out of controls=")
        warnings.warn(f"{why}, which is left out", stacklevel=2)
        del drawn["orthogonal"]

    functions = resolve(model, metrics, batch.task)

    def values(change: EditDirections | None) -> Float[Tensor, "measurement example"]:
        edits = [] if change is None else _edits(change, places.positions, where, factor)
        with intervene(model, *edits):
            found = measure(model, batch, functions, reduce=None)
        bar.update()
        return torch.stack([value.double().cpu() for value in found.values()])

    rng = torch.Generator().manual_seed(seed)
    with tqdm(total=2 + len(drawn) * draws, desc=f"{name} by {method}", unit="edit", disable=not progress) as bar:
        intact, ablated = values(None), values(removal)
        others, shares = [], []
        for draw in drawn.values():
            for _ in range(draws):
                other = draw(removal, known, find, rng)
                others.append(values(other))
                shares.append(shared(removal, other, known))
    shape = (len(drawn), draws, *intact.shape)
    every = torch.stack(others).view(shape) if others else intact.new_zeros(shape)
    found = xr.Dataset(
        {
            "intact": (("measurement", "example"), intact.numpy()),
            "ablated": (("measurement", "example"), ablated.numpy()),
            "controls": (("control", "draw", "measurement", "example"), every.numpy()),
            **{
                key: (("control", "draw"), np.reshape([pair[i] for pair in shares], shape[:2]))
                for i, key in enumerate(("overlap", "variance"))
            },
        },
        coords={"measurement": [f.__name__ for f in functions], "control": list(drawn)},
    )
    return Ablation(name, method, where, found, _compared(found, np.random.default_rng(seed)))


# Places, edits, intervals.


def _named(feature: str | Callable[[Batch], Feature]) -> str:
    return feature if isinstance(feature, str) else getattr(feature, "__name__", "feature")


def _placed(feature: str | Callable[[Batch], Feature], batch: Batch) -> Feature:
    """The feature of a batch, once the model reaches its positions."""
    if not isinstance(feature, str):
        found = feature(batch)
    elif batch.task is None:
        raise ValueError(f"language-model prompts have no feature {feature!r}; give a function of the batch")
    else:
        found = look_up(f"feature of {batch.task!r}", feature, batch.task.features(batch))
    if (last := int(found.positions.max())) >= (length := batch.inputs.shape[1]):
        raise ValueError(f"{_named(feature)} is read at position {last}, and the model runs on {length}")
    return found


def _sites(sites: str | Sequence[str] | None, offsets: int) -> tuple[str, ...]:
    names = (sites,) * offsets if isinstance(sites, str) else tuple(sites or ())
    if len(names) != offsets:
        raise ValueError(f"the feature has {offsets} offsets, and there are sites for {len(names)}")
    return names


def _layer(site: str) -> float:
    """Of a hook name; infinite behind all layers."""
    kind, _, rest = site.partition(".")
    return float(rest.partition(".")[0]) if kind == "blocks" else torch.inf


def _edits(
    removal: EditDirections, positions: Int[Tensor, "batch offset"], sites: tuple[str, ...], factor: float
) -> list[Project]:
    """One edit a site, of the offsets that have a direction and an example."""
    used = (removal.there.any(1).cpu() & (positions >= 0).any(0).cpu()).tolist()
    edits = []
    for site in dict.fromkeys(sites):
        if own := [offset for offset, name in enumerate(sites) if name == site and used[offset]]:
            edits.append(Project(site, positions[:, own], removal.basis[own], removal.target[own], factor))
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
        there = ~np.isnan(intact)
        before, after, weight = intact[there], ablated[there], examples[:, there]
        rows[name, "intact"] = [*_gap(after, before[None], weight, np.ones((RESAMPLES, 1), int)), *[np.nan] * 3]
        change = after.mean() - before.mean()
        for control, drawn in zip(values.control.values, controls[..., there]):
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
    """The mean of `others`, the mean of ablated - others, and its interval: how often each was drawn is given."""
    gaps = ablated - others
    means = ((draws @ gaps) * examples).sum(1) / (examples.sum(1) * draws.sum(1))
    return [float(x) for x in (others.mean(), gaps.mean(), *np.percentile(means, [2.5, 97.5]))]
