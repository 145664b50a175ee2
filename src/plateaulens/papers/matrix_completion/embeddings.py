"""Embeddings of tokens and positions: norms, principal components, t-SNE (arXiv 2410.22244, fig. 7).

    tokens = token_embeddings(model, token_values(task, 0.3))    # norms and two principal components, by token
    positions = position_embeddings(model, rows=4, cols=4)       # norms, t-SNE, variance explained by rows and columns
    map_checkpoints(run, lambda model: position_embeddings(model, 4, 4))
    permute_positions(model, task.sample(1024, seed=5))          # losses with the rows of W_pos in random orders

The functions take any model with `W_E` and `W_pos`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int

from plateaulens.analysis.checkpoint_steps import map_checkpoints
from plateaulens.batch import Batch
from plateaulens.interventions import Patch, intervene
from plateaulens.papers.matrix_completion.cells import LOSSES, scalar_metrics
from plateaulens.protocols import CheckpointSeries, HookedModel
from plateaulens.tasks.matrices.entries import MatrixEntries


def token_values(
    task: MatrixEntries, min_size: float | int = 0.0, max_size: float | int | None = None
) -> dict[int, float]:
    """Tokens of a matrix task and their values, for magnitudes from `min_size` to `max_size` (the limit by default).

    Tokens of values that entries never have keep their initial embedding; leave them out.
    """
    tokens = torch.arange(1, 2 * task.levels + 2)
    values = [round(v, 6) for v in task.value(tokens).double().tolist()]
    slack = task.precision / 2
    largest = task.limit if max_size is None else max_size
    return {t: v for t, v in zip(tokens.tolist(), values) if min_size - slack < abs(v) < largest + slack}


def token_embeddings(model: object, values: Mapping[int, float] | None = None) -> xr.Dataset:
    """Norms and principal components of token embeddings.

    Args:
        model: A model with `W_E`.
        values: Token -> its value; by default every token with its own number.

    Returns:
        Over token: its `value`, the `norm` of its embedding, its first two principal `component`s (centered);
        `explained`, their shares of the variance; and `symmetry`, the correlation of norm(v) and norm(-v) over all v
        that have both and are not 0: 1 where the norm depends on the magnitude only.

    Raises:
        ValueError: For a model without `W_E`, or fewer than two tokens.
    """
    values = _values_of_tokens(model, values)
    x = _weights(model, "W_E")[list(values)]
    axes, shares = principal_axes(x)
    norms = dict(zip(values.values(), np.linalg.norm(x, axis=1)))
    pairs = np.array([(norm, norms[-v]) for v, norm in norms.items() if v and -v in norms])
    return xr.Dataset(
        {
            "norm": ("token", np.linalg.norm(x, axis=1)),
            "component": (("token", "axis"), (x - x.mean(0)) @ axes.T),
            "explained": ("axis", shares),
            "symmetry": float(np.corrcoef(pairs.T)[0, 1]) if len(pairs) else np.nan,
        },
        {"token": list(values), "value": ("token", list(values.values())), "axis": [1, 2]},
    )


def token_progress(
    run: CheckpointSeries, values: Mapping[int, float] | None = None, steps: Sequence[int] | None = None
) -> xr.DataArray:
    """Token embeddings at every step along the two principal axes of the last one, not centered (arXiv 2410.22244).

    Args:
        run: A run, or other models by step.
        values: As in `token_embeddings`.
        steps: Steps of checkpoints; all by default.

    Returns:
        An array over (step, token, axis).

    Raises:
        ValueError: For a run without checkpoints, models without `W_E`, or fewer than two tokens.
    """

    def embeddings(model: object) -> xr.Dataset:
        known = _values_of_tokens(model, values)
        names = {"token": list(known), "value": ("token", list(known.values()))}
        return xr.Dataset({"embedding": (("token", "d_model"), _weights(model, "W_E")[list(known)])}, names)

    by_step = map_checkpoints(run, embeddings, steps).embedding
    axes, _ = principal_axes(by_step.values[-1])
    return by_step @ xr.DataArray(axes, {"axis": [1, 2]}, ("axis", "d_model"))


def position_embeddings(model: object, rows: int, cols: int, *, seed: int = 0) -> xr.Dataset:
    """Norms and t-SNE of position embeddings, and the share of their variance that rows and columns explain.

    Args:
        model: A model with `W_pos`, of which the first rows * cols positions are used.
        rows: Rows of the matrix; 1 for a sequence.
        cols: Columns of the matrix.
        seed: Seed of t-SNE.

    Returns:
        Over pos: its `row`, `col`, `norm` and t-SNE `component`s (of which only neighborhoods have a meaning). Over
        group ("row" and "col"): `explained`, the `variance_share`, and `chance`, its expectation for random vectors.

    Raises:
        ValueError: For more positions than the model has, or fewer than 3.
        ImportError: Without scikit-learn.
    """
    from sklearn.manifold import TSNE

    count = rows * cols
    x = _weights(model, "W_pos")
    if not 3 <= count <= len(x):
        raise ValueError(f"{rows} x {cols} are {count} positions; the model has {len(x)}, and t-SNE needs at least 3")
    x, pos = x[:count].astype(np.float64), np.arange(count)
    groups = {"row": pos // cols, "col": pos % cols}
    # scikit-learn's default perplexity of 30 where that is valid; for fewer positions a third of them, as with all
    # positions as neighbors of each a map shows nothing.
    tsne = TSNE(perplexity=30.0 if count > 30 else (count - 1) / 3, init="pca", random_state=seed)
    return xr.Dataset(
        {
            "norm": ("pos", np.linalg.norm(x, axis=1)),
            "component": (("pos", "axis"), tsne.fit_transform(x)),
            "explained": ("group", [variance_share(x, group) for group in groups.values()]),
            "chance": ("group", [(len(set(group)) - 1) / (count - 1) for group in groups.values()]),
        },
        {"pos": pos, "row": ("pos", groups["row"]), "col": ("pos", groups["col"]), "group": list(groups)},
    )


def permute_positions(
    model: HookedModel, batch: Batch, *, repeats: int = 1, metrics: Sequence[str] = LOSSES, seed: int = 0
) -> pd.DataFrame:
    """Metrics with the position embeddings as they are, and in random orders (arXiv 2410.22244).

    Args:
        model: Any hooked model with `W_pos` and `hook_pos_embed`.
        batch: Batch on which metrics are computed; only its positions are permuted.
        repeats: Number of random orders.
        metrics: Names of metrics that are one number for the batch.
        seed: Seed of the orders.

    Returns:
        A row "intact", and a row for each order.

    Raises:
        ValueError: For a model without `W_pos`, a metric of several values, or a loss over masked or observed cells if
            the batch has none.
    """
    embeddings = _parameter(model, "W_pos").detach()[: batch.inputs.shape[1]]
    rng = torch.Generator().manual_seed(seed)
    rows: dict[Any, dict[str, float]] = {"intact": dict(zip(metrics, scalar_metrics(model, batch, metrics)))}
    for i in range(repeats):
        order = torch.randperm(len(embeddings), generator=rng)
        with intervene(model, Patch("hook_pos_embed", embeddings[order])):
            rows[i] = dict(zip(metrics, scalar_metrics(model, batch, metrics)))
    return pd.DataFrame.from_dict(rows, orient="index")


def principal_axes(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "2 d"], Float[np.ndarray, " 2"]]:
    """First two principal axes of the centered rows, with positive largest entries, and shares of variance."""
    _, s, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    return (axes * np.sign(largest))[:2], (s**2 / (s**2).sum())[:2]


def variance_share(x: Float[np.ndarray, "n d"], groups: Int[np.ndarray, " n"]) -> float:
    """R^2 of a one-way analysis of variance: squares between groups over total squares, summed over columns."""
    centered = x - x.mean(0)
    between = sum((groups == g).sum() * np.square(centered[groups == g].mean(0)).sum() for g in np.unique(groups))
    return float(between / np.square(centered).sum())


def _weights(model: object, name: str) -> Float[np.ndarray, "row d_model"]:
    return _parameter(model, name).detach().float().cpu().numpy()  # numpy has no bfloat16


def _parameter(model: object, name: str) -> Float[torch.Tensor, "row d_model"]:
    try:
        return getattr(model, name)
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} has no {name}, the embeddings that this needs") from error


def _values_of_tokens(model: object, values: Mapping[int, float] | None) -> Mapping[int, float]:
    known = {token: float(token) for token in range(len(_parameter(model, "W_E")))} if values is None else values
    if len(known) < 2:
        raise ValueError(f"components need at least 2 tokens, got {len(known)}; choose other values=")
    return known
