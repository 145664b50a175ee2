"""Linear probes of a matrix at each of its cells, after each layer (arXiv 2410.22244, fig. 6).

scores = probe_cells(run.model(10_000), task.sample(2304, seed=5))
scores.loss.sel(feature="row")           # mean squared error of the row around a cell, by site
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from plateaulens._registry import look_up
from plateaulens.batch import Batch
from plateaulens.papers.matrix_completion.cells import as_matrix_batch
from plateaulens.probing.probes import probe
from plateaulens.protocols import HookedModel
from plateaulens.tasks.base import Feature

FEATURES = ("element", "row", "svd", "svd_any_sign")
LAYER_OUTPUTS = "blocks.*.hook_normalized_resid_post"  # of a post-norm model
SCORES = ("train_loss", "loss", "cosine", "absolute_cosine")


def probe_cells(
    model: HookedModel,
    batch: Batch,
    features: Sequence[str] = FEATURES,
    sites: str | Sequence[str] = LAYER_OUTPUTS,
    *,
    fractions: tuple[float, float, float] = (8 / 9, 0.0, 1 / 9),
    seed: int = 0,
) -> xr.Dataset:
    """Losses of least-squares probes without bias or penalty, one per feature and site for all cells.

    Args:
        model: Any hooked model.
        batch: A batch of `MatrixCompletion`; the paper trains on 2048 matrices and tests on 256.
        features: Names of `MatrixCompletion.features`.
        sites: Hook names or globs.
        fractions: Shares of the matrices for training, validation (not used) and testing.
        seed: Seed of the split.

    Returns:
        Over (feature, site): `train_loss`, the mean squared error over all cells and entries of the target on training
        matrices, and on test matrices `loss`, `observed_loss` and `masked_loss` over those cells, `zero_loss` of
        predicting 0, and for vectors the mean `cosine` and `absolute_cosine` (0 for a target of 0).

    Raises:
        ValueError: For no feature, or an unknown feature or site.
    """
    if not features:
        raise ValueError(f"got no feature to probe for; choose from {', '.join(FEATURES)}")
    matrices = as_matrix_batch(batch)
    known = matrices.task.features(matrices)

    def scores(feature: Feature) -> xr.Dataset:
        result = probe(
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
        by_cells = {
            "observed_loss": ("site", result.loss_where(matrices.observed)),
            "masked_loss": ("site", result.loss_where(~matrices.observed)),
            "zero_loss": float(feature.labels.cpu()[result.test].square().mean()),
        }
        return result.table[list(SCORES)].mean("offset").assign(by_cells)

    by_feature = [scores(look_up("feature", name, known)) for name in features]
    return xr.concat(by_feature, xr.Variable("feature", list(features)))
