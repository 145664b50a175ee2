"""Experiments of arXiv 2410.22244 on a run of matrix completion, by name; each returns tables with figures.

    for section in EXPERIMENTS["ablate"](ExperimentConfig.of(run)):
        print(section.text)
        section.figure.show()

From a shell: `plateaulens matrix NAME RUN`.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from plateaulens.analysis.checkpoint_steps import evenly_spaced, map_checkpoints
from plateaulens.analysis.plateau import find_plateau
from plateaulens.models.transformer import Transformer
from plateaulens.papers.matrix_completion import plots
from plateaulens.papers.matrix_completion.cell_probes import probe_cells
from plateaulens.papers.matrix_completion.component_training import COMPONENTS, train_components
from plateaulens.papers.matrix_completion.copy_check import copy_check
from plateaulens.papers.matrix_completion.embeddings import (
    permute_positions,
    position_embeddings,
    token_embeddings,
    token_values,
)
from plateaulens.papers.matrix_completion.head_ablation import head_ablations
from plateaulens.papers.matrix_completion.head_atlas import UNLABELED, head_atlas, head_groups
from plateaulens.papers.matrix_completion.negated_patching import patch_negated
from plateaulens.papers.matrix_completion.out_of_distribution import clipped_share, evaluate_ood
from plateaulens.papers.matrix_completion.part_swapping import swap_parts
from plateaulens.papers.recipe import Recipe
from plateaulens.plots.seed_curves import seeds
from plateaulens.plots.style import BLUE, styled
from plateaulens.report.sections import Section
from plateaulens.runs.run import Run
from plateaulens.tasks import MatrixBatch, MatrixCompletion
from plateaulens.tasks.matrices.entries import MASKS


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A run, a step before its drop and one after it, and the matrices of the experiments.

    Attributes:
        run: A run of matrix completion.
        before: A saved step on the plateau.
        after: A saved step after the drop.
        n: Number of matrices.
        seed: Seed of the matrices.
    """

    run: Run
    before: int
    after: int
    n: int = 1024
    seed: int = 5

    @classmethod
    def of(
        cls, run: Run, *, before: int | None = None, after: int | None = None, n: int = 1024, seed: int = 5
    ) -> "ExperimentConfig":
        """The config of a run; by default with the last saved step on the plateau and the last saved step.

        Raises:
            ValueError: For a run of another task or without checkpoints, a step that was not saved, `before` not below
                `after`, or if `before` is not given and the plateau is unknown or has no saved step.
        """
        matrix_task(run)
        after = run.steps[-1] if after is None else after
        before = _last_step_on_plateau(run, after) if before is None else before
        for step in (before, after):
            run.weights(step)
        if before >= after:
            raise ValueError(f"before must be a step below after, got {before} and {after}")
        return cls(run=run, before=before, after=after, n=n, seed=seed)

    @property
    def task(self) -> MatrixCompletion:
        """The task of the run."""
        return matrix_task(self.run)

    def batch(self, **changes: Any) -> MatrixBatch:
        """New matrices of the task, or of it with some fields changed."""
        return replace(self.task, **changes).sample(self.n, seed=self.seed)

    @property
    def steps(self) -> dict[str, int]:
        """The steps by name, "before" and "after"."""
        return {"before": self.before, "after": self.after}

    @property
    def models(self) -> dict[str, Transformer]:
        """The models of both steps by name."""
        return {name: self.run.model(step) for name, step in self.steps.items()}


def matrix_task(run: Run) -> MatrixCompletion:
    """The task of a run of matrix completion.

    Raises:
        ValueError: For a run of another task, or one without checkpoints.
    """
    if not isinstance(run.task, MatrixCompletion):
        raise ValueError(f"{run.path} trained {run.config['task']['task']}; this needs a run of `train matrix`")
    if not run.steps:
        raise ValueError(f"{run.path} has no checkpoints; train with --save-every")
    return run.task


def _last_step_on_plateau(run: Run, after: int) -> int:
    task = matrix_task(run)
    if task.loss_floor() is None:
        raise ValueError(f"the plateau's end is unknown for mask {task.mask!r}; choose one of {run.steps} (--before)")
    plateau = find_plateau(run)
    if plateau.start is not None:
        end = after if plateau.end is None else min(plateau.end, after)
        if on_plateau := [step for step in run.steps if plateau.start <= step < end]:
            return on_plateau[-1]
    raise ValueError(f"no saved step of {run.path} is on its plateau; choose one of {run.steps} (--before)")


def attention(config: ExperimentConfig) -> list[Section]:
    """Attention of heads under random and structured masks (figs. 4, 12, 22, 23)."""
    sections, task = [], config.task
    for mask in ("random", "row", "column"):
        min_rows, min_cols = MASKS[mask]
        if task.rows < min_rows or task.cols < min_cols:
            continue
        batch = config.batch(mask=mask)
        atlas = map_checkpoints(config.run, partial(head_atlas, batch=batch), list(config.steps.values()))
        last = atlas.sel(step=config.after)
        largest = last.category[last.ratio.fillna(0).argmax("category")].drop_vars("category")
        category = last.label.where(last.label != UNLABELED, largest)
        values = {name: last[name].sel(category=category).drop_vars("category") for name in ("ratio", "mass")}
        frame = xr.Dataset({"label": last.label, "category": category, **values}).to_dataframe()
        table = _table(frame[["label", "category", *values]])
        sections.append(Section(f"Mean attention, {mask} mask", table, plots.head_maps(atlas)))
        max_ratio = float(atlas.ratio.sel(step=config.before).max())
        text = f"the largest ratio of any head at step {config.before}: {max_ratio:.2f}"
        title = f"Attention by category at step {config.after}, {mask} mask"
        sections.append(Section(title, text, plots.head_categories(last)))
    return sections


def ablate(config: ExperimentConfig) -> list[Section]:
    """Losses without heads, layers and groups of heads, by three modes of ablation; the paper's code uses "mean"."""
    model, batch = config.run.model(config.after), config.batch()
    ablations = head_ablations(model, batch, head_groups(head_atlas(model, batch)))
    table = _table(ablations.to_dataframe().unstack("mode").reindex(ablations.ablated.values))
    return [Section(f"Ablated heads at step {config.after}", table, plots.head_ablations(ablations))]


def patch(config: ExperimentConfig) -> list[Section]:
    """Distances of predictions with attention outputs of X patched into the run on -X."""
    patches = patch_negated(config.run.model(config.after), config.batch())
    distances = patches.distance.stack(patch=["layer", "positions"])
    rows = {f"layer {layer}, {cells}": distances.sel(patch=(layer, cells)) for layer, cells in distances.patch.values}
    rows |= {"no patch": patches.unpatched, "the run on X": patches.clean}
    columns = [f"{cells} to {to}" for to in patches["to"].values for cells in patches.cells.values]
    table = _table(pd.DataFrame({name: grid.values.reshape(-1) for name, grid in rows.items()}, index=columns).T)
    text = f"4 Var = {patches.attrs['four_variance']:.3f}\n{table}"
    title = f"From X into -X, step {config.after}: mean squared distance"
    return [Section(title, text, plots.negated_patches(patches))]


def swap(config: ExperimentConfig) -> list[Section]:
    """Losses of the models before and after the drop with parts of each other's weights."""
    models = config.models
    swaps = swap_parts(models["before"], models["after"], config.batch())
    title = f"The models of step {config.before} (before) and {config.after} (after) with parts of each other"
    return [Section(title, _table(swaps.to_dataframe()), plots.swapped_parts(swaps))]


def copy(config: ExperimentConfig) -> list[Section]:
    """Losses with tokens put into masked cells: are they copied (table 1)?"""
    sections: list[Section] = []
    values: list[float | None] | None = None
    for name, batch in (("low-rank", config.batch()), ("full-rank", config.batch(rank=None))):
        losses = copy_check(config.run, batch, values)
        values = [None if value == "MASK" else float(value) for value in losses["value"].values]  # the same for both
        table = _table(losses.sel(step=evenly_spaced(config.run.steps, 6)).to_dataframe().unstack("value"))
        sections.append(Section(f"Copying, {name} matrices", table, plots.copied_tokens(losses)))
    return sections


def probe(config: ExperimentConfig) -> list[Section]:
    """Losses of linear probes at the cells after each layer (fig. 6)."""
    batch = config.task.sample(9 * config.n, seed=config.seed)
    sections = []
    for step in config.steps.values():
        scores = probe_cells(config.run.model(step), batch)
        table = _table(scores.to_dataframe())
        sections.append(Section(f"Probes of the model of step {step}", table, plots.cell_probes(scores)))
    return sections


def embeddings(config: ExperimentConfig) -> list[Section]:
    """Norms and components of the embeddings of tokens and positions (fig. 7)."""
    task, occurring = config.task, set(config.batch().tokens.unique().tolist())
    values = {token: value for token, value in token_values(task).items() if token in occurring}  # others are untrained
    sections = []
    for step, model in zip(config.steps.values(), config.models.values(), strict=True):
        tokens = token_embeddings(model, values)
        shares = ", ".join(f"{share:.2f}" for share in tokens.explained.values)
        text = f"norm(v) with norm(-v): {float(tokens.symmetry):.3f}; two components explain {shares}"
        sections.append(Section(f"Embeddings of tokens, step {step}", text, plots.token_embeddings(tokens)))
        positions = position_embeddings(model, task.rows, task.cols)
        table = _table(positions[["explained", "chance"]].to_dataframe())
        sections.append(Section(f"Embeddings of positions, step {step}", table, plots.position_embeddings(positions)))
    return sections


def permute(config: ExperimentConfig) -> list[Section]:
    """Losses with the position embeddings in random orders."""
    batch = config.batch()
    rows: dict[str, Any] = {}
    for name, model in config.models.items():
        losses = permute_positions(model, batch, repeats=8)
        rows[f"{name} (step {config.steps[name]}), permuted (mean of 8)"] = losses.drop(index="intact").mean()
        rows[f"{name} (step {config.steps[name]}), intact"] = losses.loc["intact"]
    table = pd.DataFrame(rows).T
    figure = go.Figure(go.Bar(x=list(table.index), y=table.masked_loss, marker_color=BLUE))
    figure.update_yaxes(title="masked_loss")
    return [Section("Position embeddings in random orders", _table(table), styled(figure, height=360))]


def shift(config: ExperimentConfig) -> list[Section]:
    """Losses on other distributions of matrices, and of nuclear-norm minimization (figs. 3, 19).

    Cells are masked at random, as structured masks have no probability and not all sizes.
    """
    task, model = replace(config.task, mask="random"), config.run.model(config.after)
    sweeps: dict[str, dict[Any, MatrixCompletion]] = {
        "probability that a cell is masked": {p / 100: replace(task, p_mask=p / 100) for p in range(10, 61, 5)},
        "rank": ranks(task),
        "rows": {rows: replace(task, rows=rows) for rows in range(2, 1 + task.rows)},
        "columns": {cols: replace(task, cols=cols) for cols in range(2, 1 + task.cols)},
        "distribution of factors": distributions(task),
    }
    sections = []
    for name, tasks in sweeps.items():
        if not tasks:
            continue  # of a full-rank task, or of a matrix with one row or column
        losses = evaluate_ood(model, tasks, n=config.n, seed=config.seed, trained_on=config.task)
        table = losses[["loss", "observed_loss", "masked_loss", "nuclear_norm"]].to_dataframe().unstack("solver")
        for column in ("zero_loss", "clipped"):
            table[column, ""] = losses[column].to_series()
        sections.append(Section(f"Other {name}", _table(table.reindex(list(tasks))), plots.ood_losses(losses, name)))
    return sections


def ranks(task: MatrixCompletion) -> dict[Any, MatrixCompletion]:
    """The task with every rank, scaled to the same largest possible entry, as larger ones would be clipped."""
    if task.rank is None:
        return {}
    all_ranks = range(1, 1 + min(task.rows, task.cols))
    return {rank: replace(task, rank=rank, scale=task.scale * (task.rank / rank) ** 0.5) for rank in all_ranks}


def distributions(task: MatrixCompletion) -> dict[Any, MatrixCompletion]:
    """The task and others that differ in the distribution of factors, by its name and scale.

    The others are the paper's: uniform, Gaussian and Laplace factors of scales 1, 0.5 and 0.25 times the task's. Those
    of which 1 % of the entries or more would be clipped are replaced by "bounded" and "signs" factors within the limit.
    """
    scales: dict[str, float] = {"uniform": 1, "gaussian": 0.5, "laplace": 0.25}
    paper = [replace(task, factors=factors, scale=scale * task.scale) for factors, scale in scales.items()]
    others = [other for other in paper if clipped_share(other) < 0.01]
    if len(others) < len(paper):
        largest = task.limit if task.rank is None else (task.limit / task.rank) ** 0.5  # scale with entries up to limit
        others += [replace(task, factors=factors, scale=min(task.scale, largest)) for factors in ("bounded", "signs")]
    return {f"{other.factors} {other.scale:.3g}": other for other in (task, *others)}


EXPERIMENTS: dict[str, Callable[[ExperimentConfig], list[Section]]] = {
    "attention": attention,
    "ablate": ablate,
    "patch": patch,
    "swap": swap,
    "copy": copy,
    "probe": probe,
    "embeddings": embeddings,
    "permute": permute,
    "shift": shift,
}


def components(
    run: Run, folder: str | Path, names: Iterable[str] = COMPONENTS, *, steps: int | None = None, **options: Any
) -> list[Section]:
    """Losses of trainings of one component with all others from the run's last step (fig. 8), and of the run itself.

    Args:
        run: A finished run of matrix completion.
        folder: Folder of the trainings; finished ones are not repeated.
        names: Names in `COMPONENTS`.
        steps: Steps of each training; the run's by default.
        options: As in `train_components`; by default the run's evaluation batch and interval of measurements.

    Raises:
        ValueError: For a run of another task or model, one without checkpoints or `masked_loss`, its own seed, or an
            unknown component.
    """
    task, config = matrix_task(run), run.model_config
    if config is None:
        raise ValueError(
            f"{run.path} trained a {run.config['model']['class']}; only a Transformer has these components"
        )
    if options.get("seed", 1) == config.seed:
        raise ValueError(f"seed {config.seed} is the run's own, with the same initial weights; choose another")
    if "masked_loss" not in run.metrics:
        raise ValueError(f"{run.path} has no masked_loss to compare with; record it with that metric")
    fields = {name: value for name, value in asdict(config).items() if name not in ("d_vocab", "n_ctx", "seed")}
    recipe = Recipe(task=task, model=fields, train=run.train_config)
    if "record" in run.config:
        options.setdefault("every", run.config["record"]["every"])
    if run.has_eval_batch:
        options.setdefault("eval_batch", run.eval_batch())
    runs = {**train_components(recipe, run, folder, names, steps=steps, **options), "everything": run}
    losses = {name: each.metrics.masked_loss for name, each in runs.items()}
    table = pd.DataFrame({name: _drop_steps(loss, task.variance) for name, loss in losses.items()}).T
    figure = seeds({name: [each] for name, each in runs.items()}, ["masked_loss"])
    return [Section("One component trained alone", str(table.to_string()), figure)]


def _drop_steps(masked_loss: pd.Series, variance: float) -> dict[str, str]:
    """First measured steps with a loss below shares of the variance, the last step and its loss."""
    row = {}
    for share in (0.9, 0.5):
        below = masked_loss.index[masked_loss < share * variance]
        row[f"L_mask < {share} variance"] = str(below[0]) if len(below) else "never"
    return {**row, "last step": str(masked_loss.index[-1]), "L_mask there": f"{masked_loss.iloc[-1]:.4f}"}


def _table(frame: pd.DataFrame | pd.Series) -> str:
    return str(frame.to_string(float_format="{:.4f}".format))
