"""What embeddings of tokens and positions look like: norms, principal components, clusters (arXiv 2410.22244, fig. 7).

    tokens = token_embeddings(model, values_of(task, 0.3))       # norm and two components, by token
    places = position_embeddings(model, rows=4, cols=4)          # norm, t-SNE, what columns and rows explain
    map_checkpoints(run, lambda model: position_embeddings(model, 4, 4))
    permute_positions(model, task.sample(1024, seed=5))          # losses with the rows of W_pos in another order

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
from plateaulens.papers.matrix_completion.ablation_and_patching import LOSSES, measured
from plateaulens.tasks.matrices.entries import MatrixEntries

POSITIONS = "hook_pos_embed"


def values_of(task: MatrixEntries, least: float | int = 0.0, most: float | int | None = None) -> dict[int, float]:
    """Tokens of a matrix task and the values that they stand for, of magnitudes from `least` to `most`.

    Values that entries never take keep their first embedding; leave them out.
    """
    tokens = torch.arange(1, 2 * task.levels + 2)
    values = [round(v, 6) for v in task.value(tokens).double().tolist()]
    slack = task.precision / 2
    limit = task.limit if most is None else most
    return {t: v for t, v in zip(tokens.tolist(), values) if least - slack < abs(v) < limit + slack}


def token_embeddings(model: Any, values: Mapping[int, float] | None = None) -> xr.Dataset:
    """Norms and principal components of token embeddings.

    Args:
        model: with `W_E`.
        values: tokens and what they stand for; by default all tokens stand for themselves.

    Returns:
        Over token: its `value`, the `norm` of its embedding, its two first `component`s (centered); `explained`, their
        shares of the variance; and `symmetry`, the correlation of norm(v) and norm(-v) over all v that have both and
        are not 0: 1 where the norm is that of the magnitude.

    Raises:
        ValueError: for a model without `W_E`, or fewer than two tokens.
    """
    values = _standing_for(model, values)
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
    run: Any, values: Mapping[int, float] | None = None, steps: Sequence[int] | None = None
) -> xr.DataArray:
    """Token embeddings at every step along the two principal axes of the last one, not centered (arXiv 2410.22244).

    Args:
        run: a Run, or anything with `.steps` and `.model(step)`.
        values: as in `token_embeddings`.
        steps: all checkpoints by default.

    Returns:
        An array over (step, token, axis).

    Raises:
        ValueError: for a run without checkpoints, models without `W_E`, or fewer than two tokens.
    """

    def look(model: Any) -> xr.Dataset:
        known = _standing_for(model, values)
        names = {"token": list(known), "value": ("token", list(known.values()))}
        return xr.Dataset({"embedding": (("token", "d_model"), _weights(model, "W_E")[list(known)])}, names)

    every = map_checkpoints(run, look, steps).embedding
    axes, _ = principal_axes(every.values[-1])
    return every @ xr.DataArray(axes, {"axis": [1, 2]}, ("axis", "d_model"))


def position_embeddings(model: Any, rows: int, cols: int, *, seed: int = 0) -> xr.Dataset:
    """Norms and a map of the embeddings of a matrix' positions, and how much of them rows and columns explain.

    Args:
        model: with `W_pos`, of which the first rows * cols are looked at.
        rows: of the matrix; 1 for a sequence.
        cols: of the matrix.
        seed: of t-SNE, which lays out neighbors in the plane and keeps no distances.

    Returns:
        Over pos: its `row`, `col`, `norm` and t-SNE `component`s; `explained` by "row" and "col": `variance_share`, of
        which `chance` is what as many groups explain of random vectors.

    Raises:
        ValueError: for more positions than the model has.
        ImportError: without scikit-learn.
    """
    from sklearn.manifold import TSNE

    count = rows * cols
    x = _weights(model, "W_pos")
    if not 3 <= count <= len(x):
        raise ValueError(f"{rows} x {cols} are {count} positions; the model has {len(x)}, and a map needs at least 3")
    x, place = x[:count].astype(np.float64), np.arange(count)
    groups = {"row": place // cols, "col": place % cols}
    # scikit-learn's default of 30 neighbors where that is valid; of fewer positions a third, as with all as neighbors
    # of all the map would show nothing.
    tsne = TSNE(perplexity=30.0 if count > 30 else (count - 1) / 3, init="pca", random_state=seed)
    return xr.Dataset(
        {
            "norm": ("pos", np.linalg.norm(x, axis=1)),
            "component": (("pos", "axis"), tsne.fit_transform(x)),
            "explained": ("group", [variance_share(x, of) for of in groups.values()]),
            "chance": ("group", [(len(set(of)) - 1) / (count - 1) for of in groups.values()]),
        },
        {"pos": place, "row": ("pos", groups["row"]), "col": ("pos", groups["col"]), "group": list(groups)},
    )


def permute_positions(
    model: Any, batch: Batch, *, repeats: int = 1, metrics: Sequence[str] = LOSSES, seed: int = 0
) -> pd.DataFrame:
    """What is measured with the position embeddings as they are, and in random orders (arXiv 2410.22244).

    Args:
        model: any hooked model that adds `hook_pos_embed` to its tokens.
        batch: whose positions are exchanged.
        repeats: orders.
        metrics: measurements of one value.
        seed: of the orders.

    Returns:
        A row "intact", and one an order.

    Raises:
        ValueError: for a model without `W_pos`, a measurement of several values, or a loss of masked or observed cells
            of matrices that have none.
    """
    embeddings = _of(model, "W_pos").detach()[: batch.inputs.shape[1]]
    rng = torch.Generator().manual_seed(seed)
    rows: dict[Any, dict[str, float]] = {"intact": dict(zip(metrics, measured(model, batch, metrics)))}
    for i in range(repeats):
        order = torch.randperm(len(embeddings), generator=rng)
        with intervene(model, Patch(POSITIONS, embeddings[order])):
            rows[i] = dict(zip(metrics, measured(model, batch, metrics)))
    return pd.DataFrame.from_dict(rows, orient="index")


def principal_axes(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "2 d"], Float[np.ndarray, " 2"]]:
    """The two first principal axes of centered rows, each with its greatest entry positive; shares of the variance."""
    _, s, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    greatest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    return (axes * np.sign(greatest))[:2], (s**2 / (s**2).sum())[:2]


def variance_share(x: Float[np.ndarray, "n d"], groups: Int[np.ndarray, " n"]) -> float:
    """The R^2 of a one-way analysis of variance: squares between groups over all, summed over columns."""
    centered = x - x.mean(0)
    between = sum((groups == g).sum() * np.square(centered[groups == g].mean(0)).sum() for g in np.unique(groups))
    return float(between / np.square(centered).sum())


def _weights(model: Any, name: str) -> Float[np.ndarray, "row d_model"]:
    return _of(model, name).detach().float().cpu().numpy()  # numpy knows no bfloat16


def _of(model: Any, name: str) -> Float[torch.Tensor, "row d_model"]:
    try:
        return getattr(model, name)
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} has no {name}: no such embeddings to look at") from error


def _standing_for(model: Any, values: Mapping[int, float] | None) -> Mapping[int, float]:
    known = {token: float(token) for token in range(len(_of(model, "W_E")))} if values is None else values
    if len(known) < 2:
        raise ValueError(f"components need at least 2 tokens, got {len(known)}; choose other values=")
    return known
