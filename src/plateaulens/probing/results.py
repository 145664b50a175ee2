"""`Probes`: what was fitted at each site and offset, and what it scores."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens.probing.datasets import ProbeConfig, ProbeDataset
from plateaulens.probing.fitting import LinearProbe, MLPProbe, fit_probes
from plateaulens.probing.verdict import thirds

AXES = ("site", "offset")


@dataclass(frozen=True, eq=False, repr=False)
class Probes:
    """Probes of one feature in one model, one at each site and offset.

    Attributes:
        feature: name of the feature.
        kind: see `Feature`.
        sites: hook names.
        positions: position at which each offset is read in each sequence of the batch; -1 where there is none.
        fit: the probes, of sites x offsets problems; NaN where a label does not vary. Called with activations
            [problem n d_model] it returns logits, or the predicted numbers.
        table: by site and offset: `loss` on the test sequences in nats (for numbers, the mean squared error),
            `train_loss`, `accuracy` and `auroc` (for numbers `r2`; for vectors also the mean `cosine` and
            `absolute_cosine` of prediction and truth, 0 for a truth of 0), the chosen `C`; `shuffled`, the loss of
            probes trained and tested on labels that were shuffled among sequences, and `selectivity`, shuffled - loss;
            `baseline`, the loss in another model. Means over labels; NaN where labels do not vary.
        losses: loss of each test sequence, which a bootstrap resamples; NaN where a sequence lacks the offset.
        baseline_losses: the same in the other model; NaN without one.
        test: indices of the test sequences in the batch.
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
        """The training loss, by which sites are chosen."""
        return self.table.train_loss.values

    def best_site(self) -> list[str | None]:
        """The site with the lowest training loss at each offset (arXiv 2505.03997); None where nothing varies."""
        best = np.nan_to_num(self.train_loss, nan=np.inf).argmin(0)
        return [None if np.isnan(self.train_loss[:, i]).all() else self.sites[b] for i, b in enumerate(best)]

    def thirds(self) -> xr.Dataset:
        """Test losses over thirds of the offsets, by the function `thirds`."""
        return thirds(self.table)

    def loss_where(self, chosen: Bool[Tensor, "batch offset"]) -> Float[np.ndarray, " site"]:
        """Mean test loss at each site over the chosen sequences and offsets."""
        return self.losses.where(chosen.cpu()[self.test].T, torch.nan).nanmean((1, 2)).numpy()

    def compare_with(self, baseline: "Probes") -> "Probes":
        """The same probes with the losses of a baseline."""
        if self.sites != baseline.sites:
            raise ValueError(f"the baseline has {', '.join(baseline.sites)}, and the model {', '.join(self.sites)}")
        return replace(self, table=self.table.assign(baseline=baseline.table.loss), baseline_losses=baseline.losses)

    def to_dataset(self) -> xr.Dataset:
        """The table, and the losses of each test sequence."""
        losses = {"losses": self.losses, "baseline_losses": self.baseline_losses}
        return self.table.assign({name: ((*AXES, "test"), value.numpy()) for name, value in losses.items()})

    def __repr__(self) -> str:
        rows = self.thirds().to_dataframe().round(4)
        head = f"Probes of {self.feature} ({self.kind}), {len(self.sites)} sites, {len(self.test)} test sequences"
        return f"{head}\n{rows}"


def fit_dataset(
    dataset: ProbeDataset,
    sites: tuple[str, ...],
    states: Float[Tensor, "site offset batch d_model"],
    config: ProbeConfig,
) -> Probes:
    """The probes of a dataset, and the losses of those of its shuffled labels if the config asks for them."""
    fitted = fit_probes(dataset, states, config)
    missing = torch.full_like(fitted.scores["loss"], torch.nan)
    control = missing
    if config.shuffled:
        control = fit_probes(dataset.shuffled(config.seed + 1), states, config).scores["loss"]
    selectivity = control - fitted.scores["loss"]
    scores = {**fitted.scores, "shuffled": control, "selectivity": selectivity, "baseline": missing}
    offsets = states.shape[1]
    table = xr.Dataset(
        {**{name: (AXES, value.numpy()) for name, value in scores.items()}, "offsets": offsets},
        {"site": list(sites), "offset": range(offsets)},
    )
    return Probes(
        feature=dataset.name,
        kind=dataset.kind,
        sites=sites,
        positions=dataset.positions,
        fit=fitted.probe,
        table=table,
        losses=fitted.losses,
        baseline_losses=torch.full_like(fitted.losses, torch.nan),
        test=dataset.split.test,
    )
