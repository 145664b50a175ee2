"""What can be read of a matrix at each of its cells, after each layer (arXiv 2410.22244, fig. 6).

found = probe_cells(run.model(10_000), task.sample(2304, seed=5))
found.loss.sel(feature="row")            # mean squared error of the row around a cell, by site
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from plateaulens._registry import look_up
from plateaulens.batch import Batch
from plateaulens.probing.probes import probe
from plateaulens.tasks.base import Feature

FEATURES = ("element", "row", "svd", "svd_any_sign")
AFTER = "blocks.*.hook_normalized_resid_post"  # what leaves a block of a post-norm model
SCORES = ("train_loss", "loss", "cosine", "absolute_cosine")


def probe_cells(
    model: Any,
    batch: Batch,
    features: Sequence[str] = FEATURES,
    sites: str | Sequence[str] = AFTER,
    *,
    fractions: tuple[float, float, float] = (8 / 9, 0.0, 1 / 9),
    seed: int = 0,
) -> xr.Dataset:
    """Least squares without a bias or a penalty, one probe a feature and site for all cells (arXiv 2410.22244).

    Args:
        model: any hooked model.
        batch: matrices; the paper trains on 2048 and tests on 256.
        features: names of `MatrixCompletion.features`.
        sites: hook names or globs.
        fractions: of the matrices: to train on, none to choose by, to test on.
        seed: of the split.

    Returns:
        Over (feature, site): `train_loss` and `loss`, mean squared errors over all cells and entries of the target, the
        latter of matrices not trained on; of these `observed_loss` and `masked_loss` over the shown and hidden cells,
        `zero_loss` of guessing 0, and of vectors the mean `cosine` and `absolute_cosine` (0 for a target of 0).

    Raises:
        ValueError: for no feature, or an unknown feature or site.
    """
    if not features:
        raise ValueError(f"nothing to probe for: got no feature; name some of {', '.join(FEATURES)}")
    known = batch.task.features(batch)

    def scores(feature: Feature) -> xr.Dataset:
        found = probe(
            model,
            batch,
            feature,
            sites,
            bias=False,
            C=np.inf,
            fractions=fractions,
            pooled=True,
            shuffled=False,
            seed=seed,
        )
        shown = batch.observed  # type: ignore[attr-defined]
        apart = {
            "observed_loss": ("site", found.loss_where(shown)),
            "masked_loss": ("site", found.loss_where(~shown)),
            "zero_loss": float(feature.labels.cpu()[found.test].square().mean()),
        }
        return found.table[list(SCORES)].mean("offset").assign(apart)

    each = [scores(look_up("feature", name, known)) for name in features]
    return xr.concat(each, xr.Variable("feature", list(features)))
