"""The experiments of arXiv 2410.22244 on a run of matrix completion, by name: a table and a figure each.

    for shown in EXPERIMENTS["ablate"](ExperimentConfig.of(run)):
        print(shown.text)
        shown.figure.show()

`plateaulens matrix NAME RUN` is the same from a shell.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from plateaulens.analysis.checkpoint_steps import evenly, map_checkpoints
from plateaulens.analysis.plateau import find_plateau
from plateaulens.papers.matrix_completion import plots
from plateaulens.papers.matrix_completion.ablation_and_patching import (
    copy_check,
    head_ablations,
    patch_negated,
    swap_parts,
)
from plateaulens.papers.matrix_completion.cell_probes import probe_cells
from plateaulens.papers.matrix_completion.embedding_structure import (
    permute_positions,
    position_embeddings,
    token_embeddings,
    values_of,
)
from plateaulens.papers.matrix_completion.head_atlas import NONE, head_atlas, head_groups
from plateaulens.papers.matrix_completion.out_of_distribution import clipped_share, evaluate_ood
from plateaulens.papers.matrix_completion.recipes import COMPONENTS, train_components
from plateaulens.papers.recipe import Recipe
from plateaulens.plots.seed_curves import seeds
from plateaulens.report.sections import Section
from plateaulens.runs.run import Run
from plateaulens.tasks import MatrixBatch, MatrixCompletion
from plateaulens.tasks.matrices.entries import MASKS


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A run, two of its steps, and how many matrices to look at.

    Attributes:
        run: of matrix completion.
        before: a step on the plateau.
        after: a step after the drop.
        n: matrices.
        seed: of the matrices.
    """

    run: Run
    before: int
    after: int
    n: int = 1024
    seed: int = 5

    @classmethod
    def of(
        cls, run: Run, before: int | None = None, after: int | None = None, n: int = 1024, seed: int = 5
    ) -> "ExperimentConfig":
        """By default the last saved step on the plateau and the last saved one.

        Raises:
            ValueError: for a run of another task, one without checkpoints, one whose plateau is not known or has no
                checkpoint, a step that was not saved, or `before` not before `after`.
        """
        task = matrices_in(run)
        after = run.steps[-1] if after is None else after
        if before is None:
            if task.loss_floor() is None:
                raise ValueError(
                    f"where the plateau of mask {task.mask!r} ends is not known; say one of {run.steps} (--before)"
                )
            plateau = find_plateau(run)
            end = after if plateau.end is None else min(plateau.end, after)
            on = [s for s in run.steps if plateau.start is not None and plateau.start <= s < end]
            if not on:
                raise ValueError(f"no saved step of {run.path} lies on its plateau; say one of {run.steps} (--before)")
            before = on[-1]
        for step in (before, after):
            run.weights(step)
        if before >= after:
            raise ValueError(f"before must be a step before after, got {before} and {after}")
        return cls(run=run, before=before, after=after, n=n, seed=seed)

    @property
    def task(self) -> MatrixCompletion:
        """What was learned."""
        assert isinstance(self.run.task, MatrixCompletion)
        return self.run.task

    def batch(self, **changes: Any) -> MatrixBatch:
        """Fresh matrices, of the task with some fields changed."""
        return replace(self.task, **changes).sample(self.n, seed=self.seed)

    @property
    def steps(self) -> dict[str, int]:
        """Both steps by name."""
        return {"before": self.before, "after": self.after}

    @property
    def models(self) -> dict[str, Any]:
        """The models of both steps."""
        return {name: self.run.model(step) for name, step in self.steps.items()}


def matrices_in(run: Run) -> MatrixCompletion:
    """The task of a run that can be looked into.

    Raises:
        ValueError: for another task, or a run without checkpoints.
    """
    if not isinstance(run.task, MatrixCompletion):
        raise ValueError(f"{run.path} trained {run.config['task']['task']}; this is for runs of `train matrix`")
    if not run.steps:
        raise ValueError(f"{run.path} has no checkpoints; train with --save-every")
    return run.task


def attention(s: ExperimentConfig) -> list[Section]:
    """What heads look at, under random and under structured masks (figs. 4, 12, 22, 23)."""
    shown, task = [], s.task
    for mask in (m for m in ("random", "row", "column") if task.rows >= MASKS[m][0] and task.cols >= MASKS[m][1]):
        batch = s.batch(mask=mask)
        atlas = map_checkpoints(s.run, partial(head_atlas, batch=batch), list(s.steps.values()))
        last = atlas.sel(step=s.after)
        largest = last.category[last.ratio.fillna(0).argmax("category")].drop_vars("category")
        category = last.label.where(last.label != NONE, largest)
        of = {name: last[name].sel(category=category).drop_vars("category") for name in ("ratio", "mass")}
        said = _table(
            xr.Dataset({"label": last.label, "category": category, **of}).to_dataframe()[["label", "category", *of]]
        )
        shown.append(Section(f"Mean attention, {mask} mask", said, plots.head_maps(atlas)))
        before = f"the largest ratio of any head at step {s.before}: {float(atlas.ratio.sel(step=s.before).max()):.2f}"
        shown.append(
            Section(f"What heads attend to at step {s.after}, {mask} mask", before, plots.head_categories(last))
        )
    return shown


def ablate(s: ExperimentConfig) -> list[Section]:
    """Heads, layers and groups of heads taken out in three modes; "mean" is the paper's code."""
    model, batch = s.run.model(s.after), s.batch()
    found = head_ablations(model, batch, head_groups(head_atlas(model, batch)))
    table = found.to_dataframe().unstack("mode").reindex(found.ablated.values)
    return [Section(f"Heads taken out of the model of step {s.after}", _table(table), plots.head_ablations(found))]


def patch(s: ExperimentConfig) -> list[Section]:
    """Attention outputs of X put into the run on -X."""
    found = patch_negated(s.run.model(s.after), s.batch())
    patched = found.distance.stack(patch=["layer", "positions"])
    rows = {f"layer {layer}, {at}": patched.sel(patch=(layer, at)) for layer, at in patched.patch.values}
    rows |= {"no patch": found.unpatched, "the run on X": found.clean}
    columns = [f"{cells} to {to}" for to in found["to"].values for cells in found.cells.values]
    table = pd.DataFrame({name: grid.values.reshape(-1) for name, grid in rows.items()}, index=columns).T
    said = f"4 Var = {found.attrs['four_variance']:.3f}\n{_table(table)}"
    return [Section(f"From X into -X, step {s.after}: mean squared distance", said, plots.negation(found))]


def switches(s: ExperimentConfig) -> list[Section]:
    """Parts exchanged between the model before the drop and the one after it."""
    found = swap_parts(s.run.model(s.before), s.run.model(s.after), s.batch())
    title = f"The model of step {s.before} and of step {s.after}, each with parts of the other"
    return [Section(title, _table(found.to_dataframe()), plots.switching(found))]


def copy(s: ExperimentConfig) -> list[Section]:
    """Tokens put into the hidden cells, and whether they are copied (table 1)."""
    shown: list[Section] = []
    values: list[float | None] | None = None  # of the first, for both
    for name, batch in (("low-rank", s.batch()), ("full-rank", s.batch(rank=None))):
        found = copy_check(s.run, batch, values)
        values = [None if value == "MASK" else float(value) for value in found["value"].values]
        table = found.sel(step=evenly(s.run.steps, 6)).to_dataframe().unstack("value")
        shown.append(Section(f"Copying, {name} matrices", _table(table), plots.copying(found)))
    return shown


def probe(s: ExperimentConfig) -> list[Section]:
    """What linear probes read at the cells after each layer (fig. 6)."""
    batch = s.task.sample(9 * s.n, seed=s.seed)
    shown = []
    for step in s.steps.values():
        found = probe_cells(s.run.model(step), batch)
        table = found.to_dataframe()
        shown.append(Section(f"Probes of the model of step {step}", _table(table), plots.cell_probes(found)))
    return shown


def embeddings(s: ExperimentConfig) -> list[Section]:
    """Norms and components of the embeddings of tokens and positions (fig. 7)."""
    occur = set(s.batch().tokens.unique().tolist())  # the others keep their first embedding
    shown, values = [], {token: v for token, v in values_of(s.task).items() if token in occur}
    for step, model in zip(s.steps.values(), s.models.values(), strict=True):
        tokens = token_embeddings(model, values)
        share = ", ".join(f"{x:.2f}" for x in tokens.explained.values)
        said = f"norm(v) with norm(-v): {float(tokens.symmetry):.3f}; two components explain {share}"
        shown.append(Section(f"Embeddings of tokens, step {step}", said, plots.token_embeddings(tokens)))
        places = position_embeddings(model, s.task.rows, s.task.cols)
        said = _table(places[["explained", "chance"]].to_dataframe())
        shown.append(Section(f"Embeddings of positions, step {step}", said, plots.position_embeddings(places)))
    return shown


def permute(s: ExperimentConfig) -> list[Section]:
    """Losses with the position embeddings in another order."""
    batch = s.batch()
    tables = {name: permute_positions(model, batch, repeats=8) for name, model in s.models.items()}
    table = pd.concat({name: t.groupby(t.index == "intact").mean() for name, t in tables.items()})
    kinds = {True: "intact", False: "permuted (mean of 8)"}
    table.index = [f"{name} (step {s.steps[name]}), {kinds[whole]}" for name, whole in table.index]
    return [Section("Position embeddings in another order", _table(table), _bars(table, "masked_loss"))]


def shift(s: ExperimentConfig) -> list[Section]:
    """Matrices unlike those of the training, beside completion by the least nuclear norm (figs. 3, 19).

    Other ranks keep the greatest entry, not the variance, as what lies beyond the limit would be cut off. The
    distributions are the paper's, Gaussian of 0.5 and Laplace of 0.25 beside uniform ones of 1, in units of the task's
    scale; where the limit would cut off a hundredth of the entries of one of them or more, "bounded" and "signs" within
    the limit instead. Cells are hidden at random, as structured masks have no probability and not all sizes.
    """
    task, model = replace(s.task, mask="random"), s.run.model(s.after)
    sweeps: dict[str, dict[Any, MatrixCompletion]] = {
        "probability that a cell is hidden": {p / 100: replace(task, p_mask=p / 100) for p in range(10, 61, 5)},
        "rank": {} if task.rank is None else ranks(task),
        "rows": {rows: replace(task, rows=rows) for rows in range(2, 1 + task.rows)},
        "columns": {cols: replace(task, cols=cols) for cols in range(2, 1 + task.cols)},
        "distribution of factors": distributions(task),
    }
    shown = []
    for name, tasks in sweeps.items():
        if not tasks:
            continue  # of one row there are no fewer
        found = evaluate_ood(model, tasks, n=s.n, seed=s.seed, learned=s.task)
        table = found[["loss", "observed_loss", "masked_loss", "size"]].to_dataframe().unstack("by")
        for more in ("zero_loss", "clipped"):
            table[more, ""] = found[more].to_series()
        shown.append(Section(f"Other {name}", _table(table.reindex(list(tasks))), plots.shifts(found, name)))
    return shown


def ranks(task: MatrixCompletion) -> dict[Any, MatrixCompletion]:
    """Every rank, the greatest possible entry being that of the task."""
    assert task.rank is not None
    most = 1 + min(task.rows, task.cols)
    return {rank: replace(task, rank=rank, scale=task.scale * (task.rank / rank) ** 0.5) for rank in range(1, most)}


def distributions(task: MatrixCompletion) -> dict[Any, MatrixCompletion]:
    """The task's factors, and others as `shift` says, by name and scale."""
    paper = [
        replace(task, factors=factors, scale=scale * task.scale)
        for factors, scale in (("uniform", 1), ("gaussian", 0.5), ("laplace", 0.25))
    ]
    eval_batch = [other for other in paper if clipped_share(other) < 0.01]
    if len(eval_batch) < len(paper):
        greatest = task.limit if task.rank is None else (task.limit / task.rank) ** 0.5  # of the entries `limit`
        eval_batch += [replace(task, factors=f, scale=min(task.scale, greatest)) for f in ("bounded", "signs")]
    return {f"{other.factors} {other.scale:.3g}": other for other in (task, *eval_batch)}


def components(
    run: Run, folder: str | Path, names: Iterable[str] = COMPONENTS, *, steps: int | None = None, **options: Any
) -> list[Section]:
    """One component trained alone, all others being those of the run's last step (fig. 8), beside the run itself.

    Args:
        run: a finished one of matrix completion.
        folder: for the trainings; what is trained there already is not trained again.
        names: of `COMPONENTS`.
        steps: of each training; the run's by default.
        options: as of `train_components`; measured as often as the run, on its held-out matrices, unless given.

    Raises:
        ValueError: for a run of another task, another model, without checkpoints or `masked_loss`, its own seed, or
            an unknown component.
    """
    task, config = matrices_in(run), run.model_config
    if config is None:
        raise ValueError(
            f"{run.path} trained a {run.config['model']['class']}; only a Transformer has these components"
        )
    if options.get("seed", 1) == config.seed:
        raise ValueError(f"seed {config.seed} is the run's: its components would start as they did; choose another")
    if "masked_loss" not in run.metrics:
        raise ValueError(f"{run.path} measured no masked_loss to compare with; record it with that measurement")
    own = {name: value for name, value in asdict(config).items() if name not in ("d_vocab", "n_ctx", "seed")}
    recipe = Recipe(task=task, model=own, train=run.train_config)
    recorded = {"every": run.config["record"]["every"]} if "record" in run.config else {}
    options = recorded | ({"eval_batch": run.eval_batch()} if run.has_eval_batch else {}) | options
    trained = train_components(recipe, run, folder, names, steps=steps, **options)
    each = {**trained, "everything": run}
    curves = {name: one.metrics.masked_loss for name, one in each.items()}
    table = pd.DataFrame({name: _drops(curve, task.variance) for name, curve in curves.items()}).T
    figure = seeds({name: [one] for name, one in each.items()}, ["masked_loss"])
    return [Section("One component trained alone", str(table.to_string()), figure)]


def _drops(masked_loss: pd.Series, variance: float) -> dict[str, str]:
    """First measured steps below shares of the variance, and the end."""
    found = {}
    for share in (0.9, 0.5):
        below = masked_loss.index[masked_loss < share * variance]
        found[f"L_mask < {share} variance"] = str(below[0]) if len(below) else "never"
    return {**found, "last step": str(masked_loss.index[-1]), "L_mask there": f"{masked_loss.iloc[-1]:.4f}"}


EXPERIMENTS: dict[str, Callable[[ExperimentConfig], list[Section]]] = {
    "attention": attention,
    "ablate": ablate,
    "patch": patch,
    "switch": switches,
    "copy": copy,
    "probe": probe,
    "embeddings": embeddings,
    "permute": permute,
    "shift": shift,
}


def _table(frame: Any) -> str:
    return str(frame.to_string(float_format="{:.4f}".format))


def _bars(table: pd.DataFrame, column: str) -> go.Figure:
    from plateaulens.plots.style import BLUE, styled

    figure = go.Figure(go.Bar(x=list(table.index), y=table[column], marker_color=BLUE))
    figure.update_yaxes(title=column)
    return styled(figure, height=360)
