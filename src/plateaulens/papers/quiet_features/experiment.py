"""Tables and figures of docs/quiet.md.

    python -m plateaulens.papers.quiet_features.experiment runs/quiet --seeds 3 --only bfs

Trains, probes and ablates what is not in the folder yet: stop it at any time, and call it again to continue.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

import plateaulens as pl
from plateaulens._io import write_atomically
from plateaulens.analysis.plateau import PlateauRule
from plateaulens.papers.quiet_features.recipes import SMALL_RECIPES
from plateaulens.probing.ablation import Ablation, OffsetProbes
from plateaulens.probing.edit_directions import METHODS, FitData
from plateaulens.probing.verdict import THIRDS, thirds

SPLIT = (0.65, 0.1, 0.25)  # 1,200 of 1,600 sequences to fit to (with a single C) and 400 to test on
RULE = PlateauRule(departure=0.05)  # of a plateau whose level is known
FLATNESS = 0.05  # share of its level by which the loss falls at most in a flat stretch
DRAWS = 8  # draws of each control of an ablation


@dataclass(frozen=True)
class ExperimentConfig:
    """When a training is measured, and which features are probed.

    Attributes:
        steps: steps that are saved and probed; the training stops at the last.
        features: names of the features to probe.
        level: loss of the plateau in nats if it is known beforehand; otherwise the plateau steps are those of the
            flattest stretch (`flattest_stretch`).
        every: steps between two measurements of the loss; divides `steps`.
        eval_batch: number of examples on which the loss is measured.
    """

    steps: tuple[int, ...]
    features: tuple[str, ...] = ()
    level: float | None = None
    every: int = 4
    eval_batch: int = 256


def count_only_loss(bits: int, groups: int) -> float:
    """Loss of the best predictor of a majority of majorities from the number of ones alone, in nats a target."""
    size, ways = bits // groups, {(0, 0): 1}
    for _ in range(groups):
        grown: dict[tuple[int, int], int] = {}
        for (ones, votes), n in ways.items():
            for k in range(size + 1):
                to = ones + k, votes + (2 * k > size)
                grown[to] = grown.get(to, 0) + n * comb(size, k)
        ways = grown
    yes = np.zeros(bits + 1)
    for (ones, votes), n in ways.items():
        yes[ones] += n * (2 * votes > groups)
    every = np.array([comb(bits, k) for k in range(bits + 1)])
    shares = np.stack([yes / every, 1 - yes / every])
    entropies = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(0)
    return float((entropies * every).sum() / every.sum() / 3)


CHANCE = SMALL_RECIPES["binary-addition"].task.loss_plateau()
EXPERIMENTS: dict[str, ExperimentConfig] = {
    "binary-addition": ExperimentConfig(
        (0, *range(16, 257, 16), 288, 320, 420), features=("carry", "first_operand"), level=CHANCE
    ),
    "multiplication": ExperimentConfig(
        (0, *range(40, 401, 20), 500, 600, 800),
        features=("carry_4", "carry_3", "carry_2", "first_operand"),
        every=10,
    ),
    "majority": ExperimentConfig(
        (0, *range(100, 1601, 100)),
        features=("group_vote",),
        level=count_only_loss(20, 4),
        every=20,
        eval_batch=1024,
    ),
    "subarray": ExperimentConfig(
        (0, *range(200, 3601, 200)), features=("is_prev_negative", "max_ending_here"), every=40, eval_batch=1024
    ),
    "bfs": ExperimentConfig(
        (0, *range(40, 401, 40), *range(500, 1501, 100)), features=("queue", "adjacency_list"), every=10
    ),
    **dict.fromkeys(
        ("activities", "dfs", "path", "topological", "mst"), ExperimentConfig((0, 75, 150, 225, 300), every=75)
    ),
}
# One seed of another implementation (PyTorch alone): loss, exact match, carry and first_operand in thirds.
REFERENCE: dict[int, tuple[str, str, str, str]] = {
    0: ("2.204", "0", ".273/.399/.414", ".280/.641/.656"),
    96: (".588", "0", ".095/.138/.137", ".198/.483/.539"),
    128: (".570", "0", ".022/.030/.060", ".066/.447/.467"),
    160: (".515", "0", ".003/.081/.023", ".257/.487/.507"),
    192: (".451", "0", ".003/.090/.052", ".034/.387/.424"),
    224: (".203", ".27", ".008/.054/.012", ".047/.170/.192"),
    256: (".074", ".71", ".024/.059/.047", ".003/.177/.192"),
    420: (".009", ".96", ".003/.047/.002", ".000/.070/.093"),
}


# Files in the folder.


def trained(folder: Path, name: str, seed: int) -> pl.Run:
    """The run of a recipe, which is trained first if it is not finished."""
    experiment, recipe = EXPERIMENTS[name], SMALL_RECIPES[name]
    return recipe.record(
        folder / f"{name}-{seed}",
        seed=seed,
        eval_batch=recipe.task.sample(experiment.eval_batch, seed=1),
        metrics=["loss", "exact_match"],
        every=experiment.every,
        save_every=experiment.steps,
        until=experiment.steps[-1],
        progress=False,
    )


def cached(path: Path, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The Dataset in a file, which `make` computes if there is none."""
    if not path.is_file():
        data = make()
        write_atomically(path, lambda partial: data.to_netcdf(partial, engine="scipy", format="NETCDF3_64BIT"))
    return xr.load_dataset(path, engine="scipy")


def probed(run: pl.Run, name: str) -> xr.Dataset:
    """The probes of a run's features over its steps."""
    features, batch = list(EXPERIMENTS[name].features), sequences(run)
    options: dict[str, Any] = {"C": 100.0, "fractions": SPLIT, "shuffled": False, "progress": False}
    path = run.path.with_suffix(f".{'-'.join(features)}.probes.nc")
    return cached(path, lambda: pl.probe_checkpoints(run, batch, features, **options))


def task_of(run: pl.Run) -> pl.tasks.Task:
    """The task of a run of these experiments, which is always one of the package's."""
    assert run.task is not None
    return run.task


def sequences(run: pl.Run) -> pl.Batch:
    """The sequences that probes are fitted to and tested on."""
    return task_of(run).sample(1600, seed=2)


# Plateaus.


@dataclass(frozen=True)
class FlatStretch:
    """A stretch of a loss curve that is followed by a fall to half; see `flattest_stretch`.

    Attributes:
        start: its first step.
        end: its last step.
        half: first step with half of the loss at its start.
        level: median loss.
    """

    start: int
    end: int
    half: int
    level: float

    @property
    def sharpness(self) -> float:
        """Its length over that of the fall to half after it; 0.08 in any exponential decay."""
        return (self.end - self.start) / (self.half - self.end)


def flattest_stretch(loss: "pd.Series[float]") -> FlatStretch | None:
    """The longest stretch in which the loss falls by at most 5 %, and after which it falls to half.

    The stretch is below 95 % of the first loss, since warm-up begins slowly, and above 5 %, since the loss of a solved
    task stalls. None if no stretch of three measurements or more is followed by half of its loss.
    """
    steps, values, stretches = loss.index.to_numpy(), loss.to_numpy(), []
    for i, level in enumerate(values):
        end = next((j for j in range(i, len(values)) if values[j] < (1 - FLATNESS) * level), len(values)) - 1
        half = next((j for j in range(end, len(values)) if values[j] <= 0.5 * level), None)
        if half is not None and end >= i + 2 and 0.05 <= level / values[0] <= 0.95:
            median = float(np.median(values[i : end + 1]))
            stretches.append(FlatStretch(int(steps[i]), int(steps[end]), int(steps[half]), median))
    return max(stretches, key=lambda stretch: stretch.end - stretch.start, default=None)


def plateau_steps(run: pl.Run, experiment: ExperimentConfig) -> tuple[list[int], float]:
    """The probed steps on the plateau, and its level: by `RULE` if the level is known, or in the flattest stretch."""
    loss = run.metrics.loss
    if experiment.level is not None:
        plateau = pl.find_plateau(run, level=experiment.level, floor=0.0, rule=RULE)
        return plateau.steps_among(experiment.steps[:-1], loss), experiment.level  # the last step is after the drop
    flat = flattest_stretch(loss)
    if flat is None:
        return [], float("nan")
    return [step for step in experiment.steps if flat.start <= step <= flat.end], flat.level


# Tables.


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def spread(values: Iterable[float], mean: Callable[[np.ndarray], float] = np.mean) -> str:
    """Mean and range over seeds."""
    x = np.array([float(value) for value in values])
    return f"{mean(x):.3f} [{x.min():.3f}, {x.max():.3f}]"


def geometric(x: np.ndarray) -> float:
    """The mean of what spans decades."""
    return float(np.exp(np.log(np.maximum(x, 1e-30)).mean()))


def compared_with_reference(runs: Sequence[pl.Run], overs: Sequence[xr.Dataset]) -> str:
    """Section 10 of the notes on the paper: the same table over seeds."""
    losses, exact = ([[run.metrics[name][t] for run in runs] for t in REFERENCE] for name in ("loss", "exact_match"))
    rows = [
        [str(t), ref[0], spread(a), ref[1], spread(b)]
        for (t, ref), a, b in zip(REFERENCE.items(), losses, exact, strict=True)
    ]
    text = table(["step", "loss: reference", "ours", "exact match: reference", "ours"], rows)
    tables = [thirds(over).loss for over in overs]
    for i, feature in enumerate(EXPERIMENTS["binary-addition"].features):
        rows = []
        for t, ref in REFERENCE.items():
            found = [x.sel(feature=feature, step=t) for x in tables]
            rows.append(
                [str(t), ref[2 + i], *(spread([float(x.sel(third=n)) for x in found], geometric) for n in THIRDS)]
            )
        text += "\n" + table([f"{feature}, step", "reference", *THIRDS], rows)
    return text


def plateau_table(runs: Sequence[pl.Run], experiment: ExperimentConfig) -> str:
    """Plateau and drop of each seed."""
    rows = []
    for seed, run in enumerate(runs):
        loss, (steps, level), flat = (
            run.metrics.loss,
            plateau_steps(run, experiment),
            flattest_stretch(run.metrics.loss),
        )
        drop = None if np.isnan(level) else pl.find_plateau(run, level=level, floor=0.0).drop
        stretch = "none" if flat is None else f"{flat.start} to {flat.end} at {flat.level:.3f}, {flat.sharpness:.2f}"
        near = f"{steps[0]} to {steps[-1]}" if steps else "none"
        end = [f"{loss.iloc[-1]:.4f}", f"{run.metrics.exact_match.iloc[-1]:.3f}"]
        rows.append([str(seed), f"{level:.3f}", near, stretch, "none" if drop is None else str(drop), *end])
    return table(
        ["seed", "level", "probed plateau steps", "flattest stretch, sharpness", "drop", "last loss", "exact match"],
        rows,
    )


def loss_table(runs: Sequence[pl.Run]) -> str:
    """Loss at a few steps, and exact match at the last."""
    rows = [[*(f"{x:.3f}" for x in run.metrics.loss), f"{run.metrics.exact_match.iloc[-1]:.3f}"] for run in runs]
    return table([*map(str, runs[0].metrics.index), "exact match"], rows)


def verdicts(runs: Sequence[pl.Run], overs: Sequence[xr.Dataset], experiment: ExperimentConfig) -> str:
    """Of each feature and seed: the rule of `quiet_or_loud` at the last plateau step, and after the drop."""
    rows = []
    for feature in experiment.features:
        for seed, (run, over) in enumerate(zip(runs, overs, strict=True)):
            steps = plateau_steps(run, experiment)[0]
            if not steps:
                rows.append([feature, str(seed), "no plateau step", "", "", ""])
                continue
            found = pl.probing.quiet_or_loud(over, feature, plateau_steps=steps, after_step=experiment.steps[-1])
            cells = [ratios(found.ratios.isel(step=at)) for at in (-2, -1)]  # the last plateau step, and after
            last = f"{steps[-1]} ({run.metrics.loss[steps[-1]]:.3f})"
            rows.append([feature, str(seed), last, *cells, f"{found.verdict} ({found.agreement:.0%})"])
    return table(["feature", "seed", "last plateau step (loss)", "ratios there", "ratios at the end", "verdict"], rows)


def by_step(run: pl.Run, over: xr.Dataset, experiment: ExperimentConfig) -> str:
    """Loss and what probes lose beside those on the untrained network, first/middle/last third, step by step."""
    by_third, rows = thirds(over), []
    for step in over.step.values:
        cells = [f"{run.metrics.loss[step]:.3f}", f"{run.metrics.exact_match[step]:.2f}"]
        for feature in experiment.features:
            at = by_third.sel(feature=feature, step=step)
            cells.append("/".join("-" if np.isnan(r) else f"{r:.2f}" for r in (at.loss / at.baseline).values))
        rows.append([str(step), *cells])
    return table(["step", "loss", "exact match", *experiment.features], rows)


def ratios(at: xr.Dataset) -> str:
    """Three thirds with intervals."""
    each = zip(*(at[name].values for name in ("ratio", "low", "high")), strict=True)
    return ", ".join(f"{r:.2f} [{a:.2f}, {b:.2f}]" for r, a, b in each)


# Ablations.


def ablated(run: pl.Run, feature: str, method: str, site: str) -> Ablation:
    """An ablation of the last model; `site` is "best", "best below" the last layer, or a layer."""

    def make() -> xr.Dataset:
        model, train = run.model(run.steps[-1]), sequences(run)
        sites: str | tuple[str, ...] = f"blocks.{site}.hook_resid_post"
        if site in ("best", "best below"):  # the probes only choose the sites: all directions are fitted to `train`
            probes = pl.probe(model, train, feature, C=100.0, fractions=SPLIT, shuffled=False)
            sites = OffsetProbes.best(probes, model.cfg.n_layers - 1 if "below" in site else None).sites
        options: dict[str, Any] = {"draws": DRAWS, "metrics": ["exact_match"], "progress": False}
        test = task_of(run).sample(256, seed=3)
        return pl.ablate_feature(model, test, feature, method=method, train=train, sites=sites, **options).to_dataset()

    path = run.path.with_suffix(f".{feature}-{method}-{site.replace(' ', '-')}.nc")
    return Ablation.from_dataset(cached(path, make))


EDITS = (
    ("hyperplane", "best"),
    ("hyperplane", "best below"),
    ("mean_difference", "0"),
    ("mean_difference", "1"),
)


def ablations(runs: Sequence[pl.Run], experiment: ExperimentConfig, edits: Sequence[tuple[str, str]]) -> str:
    """Exact match without a feature, and with each control: means over seeds, and the least and greatest."""
    rows = []
    for feature in experiment.features:
        for method, site in edits:
            tables = [ablated(run, feature, method, site).table.loc["exact_match"] for run in runs]
            without = spread([_number(t, "intact", "mean") + _number(t, "intact", "difference") for t in tables])
            controls = [spread([_number(t, control, "mean") for t in tables]) for control in CONTROLS]
            rows.append([feature, f"{method}, {site}", without, *controls])
    return table(["feature", "edit, layer", "without it", *CONTROLS], rows)


def _number(frame: Any, row: str, column: str) -> float:
    return float(frame.loc[row, column])


def differences(runs: Sequence[pl.Run], feature: str, edit: tuple[str, str]) -> str:
    """Of one edit: exact match, and how far it lies from each control, seed by seed, with 95 % intervals."""
    rows = []
    for seed, run in enumerate(runs):
        at = ablated(run, feature, *edit).table.loc["exact_match"]
        gaps = [f"{at.difference[c]:+.3f} [{at.low[c]:+.3f}, {at.high[c]:+.3f}]" for c in CONTROLS]
        before = _number(at, "intact", "mean")
        rows.append([str(seed), f"{before:.3f}", f"{before + _number(at, 'intact', 'difference'):.3f}", *gaps])
    return table(["seed", "intact", f"without {feature}", *(f"less {c}" for c in CONTROLS)], rows)


CONTROLS = ("gaussian", "shuffled", "variance", "orthogonal")


def taken(runs: Sequence[pl.Run], feature: str, edits: Sequence[tuple[str, str]]) -> str:
    """Of each control, in the mean over seeds: its share of the removed directions, and its variance over theirs."""
    rows = []
    for edit in edits:
        tables = pd.concat([ablated(run, feature, *edit).table.loc["exact_match"] for run in runs])
        at = tables.groupby(level=0)[["overlap", "variance"]]
        cells = [", ".join(spread(at.get_group(c)[name]) for name in ("overlap", "variance")) for c in CONTROLS]
        rows.append([", ".join(edit), *cells])
    return table([f"{feature}: share of the directions, of the variance", *CONTROLS], rows)


def variance_shares(run: pl.Run, feature: str, site: str = "blocks.1.hook_resid_post") -> str:
    """How much of the variance at its site a direction of `mean_difference` has, in the mean over offsets."""
    train, model = sequences(run), run.model(run.steps[-1])
    asked = train.task.features(train)[feature]
    known = FitData(model, train, asked, (site,) * asked.positions.shape[1], None, 1)
    total = torch.einsum("omm->o", known.covariance)
    each = []
    for labels in (known.labels, known.shuffled(torch.Generator().manual_seed(0))):
        u = METHODS["mean_difference"](known, labels).basis.double()
        each.append(float((torch.einsum("okm,omn,okn->o", u, known.covariance, u) / total).mean()))
    return f"true labels {each[0]:.3f}, shuffled labels {each[1]:.3f}, Gaussian {1 / known.mean.shape[-1]:.3f}"


def token_loss(run: pl.Run, feature: str) -> str:
    """Test loss of the probe that is given the visible tokens alone."""
    at = pl.probing.probe_tokens(sequences(run), feature, C=100.0, fractions=SPLIT).thirds()
    return "/".join(f"{x:.4f}" for x in at.loss.values)


def draw(run: pl.Run, over: xr.Dataset, experiment: ExperimentConfig, folder: Path) -> None:
    """Probes of the first feature over training, and the ablation in which the controls disagree."""
    from plateaulens.papers.abrupt_learning.task_figures import picture

    plateau = pl.find_plateau(run, level=experiment.level, floor=0.0)
    figures = {
        "quiet.png": pl.plots.probes(over, run, plateau, feature=experiment.features[0]),
        "quiet-ablation.png": pl.plots.ablation(ablated(run, experiment.features[0], *EDITS[-1])),
    }
    for name, figure in figures.items():
        picture(figure.update_layout(paper_bgcolor="white", width=900), folder / name)


def main() -> None:
    """Train, probe and ablate what is missing; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(EXPERIMENTS), action="append")
    parser.add_argument("--figures", type=Path, help="the folder for figures, such as docs")
    asked = parser.parse_args()
    for name in asked.only or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        runs = [trained(asked.folder, name, seed) for seed in range(asked.seeds)]
        write(f"## {name}: {SMALL_RECIPES[name].task!r}\n")
        if not experiment.features:
            write(loss_table(runs))
            continue
        overs = [probed(run, name) for run in runs]
        for text in (
            plateau_table(runs, experiment),
            verdicts(runs, overs, experiment),
            by_step(runs[0], overs[0], experiment),
        ):
            write(text)
        if name == "binary-addition":
            write(compared_with_reference(runs, overs))
            write(ablations(runs, experiment, EDITS))
            for feature in experiment.features:
                write(taken(runs, feature, EDITS))
                write(f"{feature}: share of the variance: {variance_shares(runs[0], feature)}")
                write(f"{feature}: loss of a probe of the tokens: {token_loss(runs[0], feature)}")
            write(differences(runs, experiment.features[0], EDITS[-1]))
            write(str(ablated(runs[0], experiment.features[0], *EDITS[-1])))
            if asked.figures:
                draw(runs[0], overs[0], experiment, asked.figures)


def write(text: str) -> None:
    """A paragraph, at once."""
    sys.stdout.write(text.rstrip() + "\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
