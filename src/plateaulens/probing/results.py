"""Under `probes`: `Probes`, what was fitted at each site and offset and what it scores."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens.probing.fitting import ProbeDataset, best_fit
from plateaulens.probing.hidden import MLPProbe
from plateaulens.probing.solvers import LinearProbe
from plateaulens.probing.verdict import thirds


@dataclass(frozen=True, eq=False, repr=False)
class Probes:
    """Probes of one feature in one model: w . x + b, or a hidden layer's U relu(W x + b) + c, at each site and offset.

    Attributes:
        feature: its name.
        kind: see `Feature`.
        sites: hook names.
        positions: where each offset was read in each sequence of the batch.
        fit: of sites x offsets problems, for activations as they are; NaN where a label does not vary. Called with
            [problem n d_model] it gives logits, or numbers where these are probed.
        table: by site and offset: `loss` on the test sequences in nats (of numbers, the mean squared error),
            `train_loss`, `accuracy` and `auroc` (of numbers, `r2`; of vectors too the mean `cosine` and
            `absolute_cosine` of guess and truth, 0 for a truth of 0), the `C` that was taken; `shuffled`, the loss of
            probes trained and tested on labels shuffled among sequences, and `selectivity`, shuffled - loss; and
            `baseline`, the loss in another model. Means over labels; NaN where labels do not vary.
        losses: of each test sequence, NaN where it has none: what a bootstrap resamples.
        baseline_losses: in the other model; all NaN without one.
        test: which sequences of the batch the tests are.
    """

    feature: str
    kind: str
    sites: tuple[str, ...]
    positions: Int[Tensor, "batch offset"]
    fit: LinearProbe | MLPProbe
    table: xr.Dataset
    losses: Float[Tensor, "site offset test"]
    baseline_losses: Float[Tensor, "site offset test"]
    test: Int[Tensor, " test"]

    @property
    def weights(self) -> Float[Tensor, "site offset label d_model"]:
        """The w of linear probes; 0 where a label does not vary."""
        return self._linear().weights.nan_to_num().unflatten(0, (len(self.sites), -1))

    @property
    def biases(self) -> Float[Tensor, "site offset label"]:
        """The b of linear probes; 0 where a label does not vary."""
        return self._linear().biases.nan_to_num().unflatten(0, (len(self.sites), -1))

    def _linear(self) -> LinearProbe:
        if isinstance(self.fit, MLPProbe):
            raise ValueError(f"a probe of {self.feature} with a hidden layer has no direction; probe without hidden=")
        return self.fit

    @property
    def train_loss(self) -> Float[np.ndarray, "site offset"]:
        """The loss by which sites are chosen."""
        return self.table.train_loss.values

    def best_site(self) -> list[str | None]:
        """Of each offset the site of the lowest train loss (arXiv 2505.03997); None where nothing varies."""
        best = np.nan_to_num(self.train_loss, nan=np.inf).argmin(0)
        return [None if np.isnan(self.train_loss[:, i]).all() else self.sites[b] for i, b in enumerate(best)]

    def thirds(self) -> xr.Dataset:
        """As the function `thirds`."""
        return thirds(self.table)

    def loss_where(self, chosen: Bool[Tensor, "batch offset"]) -> Float[np.ndarray, " site"]:
        """Mean test loss at each site over some of the examples."""
        return self.losses.where(chosen.cpu()[self.test].T, torch.nan).nanmean((1, 2)).numpy()

    def compare_with(self, other: "Probes") -> "Probes":
        """With the losses of a baseline."""
        if self.sites != other.sites:
            raise ValueError(f"the baseline has {', '.join(other.sites)}, and the model {', '.join(self.sites)}")
        return replace(self, table=self.table.assign(baseline=other.table.loss), baseline_losses=other.losses)

    def uninterruptible(self) -> xr.Dataset:
        """The table, and the losses of each test sequence."""
        axes = ("site", "offset", "test")
        named = {"losses": self.losses, "baseline_losses": self.baseline_losses}
        return self.table.assign({name: (axes, value.numpy()) for name, value in named.items()})

    def __repr__(self) -> str:
        rows = self.thirds().to_dataframe().round(4)
        return f"Probes of {self.feature} ({self.kind}), {len(self.sites)} sites, {len(self.test)} tests\n{rows}"


def answered(
    question: ProbeDataset,
    sites: tuple[str, ...],
    states: Float[Tensor, "site offset batch d_model"],
    start: Probes | None,
    shuffled: bool,
    pooled: bool,
) -> Probes:
    """The probes of a question, and where asked of its shuffled labels; linear ones may start from others."""
    shape, asked = states.shape[:2], question.to(states.device)
    fit, scores, losses = _best(asked, states, None if start is None else start.fit, pooled)
    control = torch.full_like(scores["loss"], torch.nan)
    if shuffled:
        control = _best(question.shuffled().to(states.device), states, None, pooled)[1]["loss"]
    scores |= {
        "shuffled": control,
        "selectivity": control - scores["loss"],
        "baseline": torch.full_like(control, torch.nan),
    }
    values: dict[str, Any] = {name: (("site", "offset"), v.view(shape).cpu().numpy()) for name, v in scores.items()}
    table = xr.Dataset({**values, "offsets": shape[1]}, {"site": list(sites), "offset": range(shape[1])})
    own = losses.view(*shape, -1).cpu()
    return Probes(
        feature=question.name,
        kind=question.kind,
        sites=sites,
        positions=question.positions,
        fit=fit,
        table=table,
        losses=own,
        baseline_losses=torch.full_like(own, torch.nan),
        test=question.parts.test,
    )


def _best(
    question: ProbeDataset,
    states: Float[Tensor, "site offset batch d_model"],
    start: LinearProbe | MLPProbe | None,
    pooled: bool,
) -> tuple[LinearProbe | MLPProbe, dict[str, Tensor], Float[Tensor, "problem test"]]:
    """`best_fit` of each site and offset; pooled, of a site's rows at all offsets, which keep losses of their own."""
    if not pooled:
        return best_fit(question, states.flatten(0, 1), start)
    _, offsets, sequences, _ = states.shape
    places = sequences * torch.arange(offsets)[:, None]
    split = {name: (places + getattr(question.parts, name)).flatten() for name in ("train", "validation", "test")}
    rows, labels = question.positions.T.reshape(-1, 1), question.labels.flatten(0, 1)[None]
    whole = replace(question, positions=rows, labels=labels, parts=replace(question.parts, **split))
    fit, scores, losses = best_fit(whole, states.flatten(1, 2), None if start is None else start[::offsets])
    losses = losses.view(-1, len(question.parts.test))
    tested = losses.isfinite().any(1)
    each = {name: v.repeat_interleave(offsets).where(tested, torch.nan) for name, v in scores.items()}
    own = fit[torch.arange(len(states)).repeat_interleave(offsets)]
    return own, each | {"loss": losses.nanmean(1)}, losses
