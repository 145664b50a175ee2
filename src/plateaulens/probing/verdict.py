"""Quiet or loud: was a feature there before the loss dropped, or did it come with the drop? By a stated rule."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from plateaulens._registry import unknown

THIRDS = ("first", "middle", "last")


def thirds(table: xr.Dataset) -> xr.Dataset:
    """Test losses over the first, middle and last third of a feature's offsets, by geometric mean.

    `loss` is at the site of the lowest train loss, offset by offset; `baseline` takes its best site by its test loss
    (both arXiv 2505.03997). Offsets where nothing varies do not count.

    Args:
        table: of `Probes` or `probe_checkpoints`.
    """
    if "feature" in table.dims:
        each = [thirds(table.sel(feature=name)) for name in table.feature.values]
        return xr.concat(each, table.feature)
    offsets = int(table.offsets.max())
    loss, baseline = _at_best(table, "loss"), table.baseline.min("site")
    named = {
        name: xr.DataArray(
            _by_third(values.transpose(..., "offset").values, offsets),
            dims=[*(d for d in values.dims if d != "offset"), "third"],
        )
        for name, values in {"loss": loss, "baseline": baseline}.items()
    }
    coords = {"third": list(THIRDS), **({"step": table.step.values} if "step" in table.dims else {})}
    return xr.Dataset(named, coords)


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """Whether a feature is quiet.

    Attributes:
        feature: its name.
        verdict: "quiet", "loud" or "mixed".
        agreement: share of resamples of the test sequences that lead to the same verdict.
        ratios: `ratio` of loss and baseline by step and third, and the 95 % interval from `low` to `high`.
    """

    feature: str
    verdict: str
    agreement: float
    ratios: xr.Dataset

    def __repr__(self) -> str:
        lines = [f"{self.feature}: {self.verdict} (so in {self.agreement:.0%} of resamples); loss / baseline:"]
        for step, *values in zip(self.ratios.step.values, *(self.ratios[n].values for n in ("ratio", "low", "high"))):
            cells = (f"{third} {r:.2f} [{a:.2f}, {b:.2f}]" for third, r, a, b in zip(THIRDS, *values))
            lines.append(f"    step {step}: " + ", ".join(cells))
        return "\n".join(lines)


def quiet_or_loud(
    over: xr.Dataset,
    feature: str | None = None,
    *,
    plateau_steps: Sequence[int],
    after_step: int,
    quiet: float = 0.7,
    unchanged: float = 0.85,
    loud: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> Verdict:
    """The ratio of probe and baseline losses on the plateau and after it, in thirds of the offsets, and a verdict.

    "quiet": at the last plateau step it is at most `quiet` in at least one third. "loud": it is above `unchanged` in
    all thirds at all plateau steps, and at most `loud` in at least one third after the drop. Else "mixed". The paper
    (arXiv 2505.03997) states no rule and decides by eye.

    Args:
        over: what `probe_checkpoints` returned.
        feature: which of several.
        plateau_steps: probed steps with the loss on its plateau.
        after_step: a probed step after the drop.
        quiet: see above.
        unchanged: see above.
        loud: see above.
        resamples: bootstrap samples of the test sequences; the model and its baseline are tested on the same.
        seed: of the bootstrap.

    Raises:
        ValueError: for a feature or step that was not probed, no plateau step, or one that is not before `after_step`.
    """
    if "feature" in over.dims:
        known = [str(name) for name in over.feature.values]
        if feature not in known:
            raise unknown("feature", str(feature), known)
        over = over.sel(feature=feature)
    steps = [*sorted(plateau_steps), after_step]
    if missing := [step for step in steps if step not in over.step.values]:
        raise ValueError(f"steps {missing} were not probed; there are {over.step.values.tolist()}")
    if not len(plateau_steps):
        raise ValueError("plateau_steps= is empty; name at least one")
    if after_step <= steps[-2]:
        raise ValueError(f"after_step={after_step} is not after the plateau, whose last step is {steps[-2]}")
    over, offsets = over.sel(step=steps), int(over.offsets.max())
    own = _at_best(over, "losses").transpose("step", "offset", "test").values
    other = over.baseline_losses.isel(step=0).transpose("site", "offset", "test").values
    tests = own.shape[-1]
    draws = np.random.default_rng(seed).multinomial(tests, np.full(tests, 1 / tests), resamples)
    weights = np.concatenate([np.ones((1, tests)), draws])  # the tests as they are come first
    ratios = _by_third(_means(own, weights), offsets) / _by_third(_least(_means(other, weights), 1), offsets)[:, None]
    verdicts = _verdicts(ratios, quiet, unchanged, loud)
    low, high = np.full((2, *ratios.shape[1:]), np.nan)
    known = ~np.isnan(ratios[1:]).all(0)  # fewer than three offsets leave a third without one
    low[known], high[known] = np.nanpercentile(ratios[1:][:, known], [2.5, 97.5], axis=0)
    axes = ("step", "third")
    table = xr.Dataset(
        {"ratio": (axes, ratios[0]), "low": (axes, low), "high": (axes, high)}, {"step": steps, "third": list(THIRDS)}
    )
    return Verdict(feature or "feature", str(verdicts[0]), float((verdicts[1:] == verdicts[0]).mean()), table)


def _verdicts(
    ratios: Float[np.ndarray, "resample step third"], quiet: float, unchanged: float, loud: float
) -> np.ndarray:
    """One a resample; the last step is after the drop, thirds without an offset are NaN."""
    plateau, after = ratios[:, :-1], ratios[:, -1]
    known: Bool[np.ndarray, "resample step third"] = ~np.isnan(plateau)
    early = (plateau[:, -1] <= quiet).any(-1)
    late = ((plateau > unchanged) | ~known).all((1, 2)) & known.any((1, 2)) & (after <= loud).any(-1)
    return np.where(early, "quiet", np.where(late, "loud", "mixed"))


def _at_best(table: xr.Dataset, name: str) -> xr.DataArray:
    """A variable at the site of the lowest train loss."""
    return table[name].isel(site=table.train_loss.fillna(np.inf).argmin("site"))


def _means(
    values: Float[np.ndarray, "*axes test"], weights: Float[np.ndarray, "resample test"]
) -> Float[np.ndarray, "resample ..."]:
    """Weighted means over the tests that have a value."""
    there = ~np.isnan(values)
    total, count = np.where(there, values, 0.0) @ weights.T, there @ weights.T
    return np.moveaxis(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0), -1, 0)


def _least(values: Float[np.ndarray, "*axes"], axis: int) -> np.ndarray:
    """The least number, NaN for want of one."""
    least = np.where(np.isnan(values), np.inf, values).min(axis)
    return np.where(np.isinf(least), np.nan, least)


def _by_third(values: Float[np.ndarray, "*axes offset"], offsets: int) -> Float[np.ndarray, "*axes third"]:
    """Geometric means; NaN for a third in which nothing varies."""
    there = ~np.isnan(values)
    logs = np.log(np.where(there, np.maximum(values, 1e-30), 1.0))
    parts = [(logs[..., i].sum(-1), there[..., i].sum(-1)) for i in np.array_split(np.arange(offsets), 3)]
    means = [np.divide(s, n, out=np.full(np.shape(s), np.nan), where=n > 0) for s, n in parts]
    return np.exp(np.stack(means, -1))
