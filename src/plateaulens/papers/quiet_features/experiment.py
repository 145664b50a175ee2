"""Tables and figures of docs/quiet.md: `python docs/quiet.py runs/quiet --seeds 3`, a task with `--only bfs`.

Trains, probes and ablates what is not yet under the folder: stop it at any time, and call it again to go on.
"""

import argparse
import pickle
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
from plateaulens.papers.quiet_features.recipes import SMALL_RECIPES
from plateaulens.probing.ablation import Ablation, Directions
from plateaulens.probing.edit_directions import METHODS, FitData
from plateaulens.probing.verdict import THIRDS, thirds

SPLIT = (0.65, 0.1, 0.25)  # of 1,600 sequences 1,200 to fit to and 400 to test on, there being one C alone
NEAR = 0.05  # of a level, which is left where three measurements in a row are further below it
DRAWS = 8  # of each control of an ablation


@dataclass(frozen=True)
class Look:
    """Where a training is looked at.

    Attributes:
        steps: which are saved and probed; the training stops at the last.
        features: which are probed.
        level: loss of the plateau in nats where it is known beforehand; else it is measured (`flattest`).
        every: how often the loss is measured; divides `steps`.
        eval_batch: examples that it is measured on.
    """

    steps: tuple[int, ...]
    features: tuple[str, ...] = ()
    level: float | None = None
    every: int = 4
    eval_batch: int = 256


def of_count(bits: int, groups: int) -> float:
    """Loss of a majority of majorities to whoever knows how many bits are 1, and nothing else; in nats a target."""
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
LOOKS: dict[str, Look] = {
    "binary-addition": Look((0, *range(16, 257, 16), 288, 320, 420), ("carry", "first_operand"), CHANCE),
    "multiplication": Look(
        (0, *range(40, 401, 20), 500, 600, 800), ("carry_4", "carry_3", "carry_2", "first_operand"), every=10
    ),
    "majority": Look((0, *range(100, 1601, 100)), ("group_vote",), of_count(20, 4), every=20, eval_batch=1024),
    "subarray": Look((0, *range(200, 3601, 200)), ("is_prev_negative", "max_ending_here"), every=40, eval_batch=1024),
    "bfs": Look((0, *range(40, 401, 40), *range(500, 1501, 100)), ("queue", "adjacency_list"), every=10),
    **dict.fromkeys(("activities", "dfs", "path", "topological", "mst"), Look((0, 75, 150, 225, 300), every=75)),
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


# What is kept under the folder.


def trained(folder: Path, name: str, seed: int) -> pl.Run:
    """The run of a recipe, finished if need be."""
    look, recipe = LOOKS[name], SMALL_RECIPES[name]
    options = {"every": look.every, "save_every": look.steps, "until": look.steps[-1]}
    options["metrics"] = ["loss", "exact_match"]
    eval_batch = recipe.task.sample(look.eval_batch, seed=1)
    return recipe.record(folder / f"{name}-{seed}", seed=seed, eval_batch=eval_batch, progress=False, **options)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returned, from its file if there is one."""
    if not path.is_file():
        found = make()
        write_atomically(path, lambda partial: partial.write_bytes(pickle.dumps(found)))
    return pickle.loads(path.read_bytes())


def probed(run: pl.Run, name: str) -> xr.Dataset:
    """The probes of a run's features over its steps."""
    features, batch = list(LOOKS[name].features), sequences(run)
    options = {"C": 100.0, "fractions": SPLIT, "shuffled": False, "progress": False}
    return kept(
        run.path.with_suffix(f".{'-'.join(features)}.probes"),
        lambda: pl.probe_checkpoints(run, batch, features, **options),
    )


def sequences(run: pl.Run) -> pl.Batch:
    """What probes are fitted to and tested on."""
    return run.task.sample(1600, seed=2)


# Plateaus.


@dataclass(frozen=True)
class Flat:
    """The flattest stretch of a loss curve before a fall; see `flattest`."""

    start: int
    end: int
    half: int
    level: float

    @property
    def sharpness(self) -> float:
        """Its length over that of the fall after it, which is 0.08 in any exponential decay."""
        return (self.end - self.start) / (self.half - self.end)


def flattest(loss: "pd.Series[float]") -> Flat | None:
    """The longest stretch in which the loss falls by at most 5 %, to fall to half of it later.

    It lies below 95 % and above 5 % of the first loss: warm-up begins slowly, and the loss of a solved task stalls.

    None where no stretch of three measurements or more is followed by half of its loss.
    """
    steps, values, found = loss.index.to_numpy(), loss.to_numpy(), []
    for i, level in enumerate(values):
        end = next((j for j in range(i, len(values)) if values[j] < 0.95 * level), len(values)) - 1
        half = next((j for j in range(end, len(values)) if values[j] <= 0.5 * level), None)
        if half is not None and end >= i + 2 and 0.05 <= level / values[0] <= 0.95:
            found.append(Flat(int(steps[i]), int(steps[end]), int(steps[half]), float(np.median(values[i : end + 1]))))
    return max(found, key=lambda flat: flat.end - flat.start, default=None)


def plateau_of(run: pl.Run, look: Look) -> tuple[list[int], float]:
    """The probed steps on the plateau, and its level: at the one known beforehand, or in the flattest stretch."""
    loss = run.metrics.loss
    if look.level is not None:
        reached, below = loss <= (1 + NEAR) * look.level, (loss < (1 - NEAR) * look.level).astype(int)
        left = below.rolling(3).sum().shift(-2) == 3  # here, and at the two measurements after
        start, end = (series.idxmax() if series.any() else np.inf for series in (reached, left))
        return [step for step in look.steps[:-1] if start <= step < end], look.level  # the last is after the drop
    flat = flattest(loss)
    if flat is None:
        return [], float("nan")
    return [step for step in look.steps if flat.start <= step <= flat.end], flat.level


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


def beside_reference(runs: Sequence[pl.Run], overs: Sequence[xr.Dataset]) -> str:
    """Section 10 of the notes on the paper: the same table over seeds."""
    losses, exact = ([[run.metrics[name][t] for run in runs] for t in REFERENCE] for name in ("loss", "exact_match"))
    rows = [
        [str(t), ref[0], spread(a), ref[1], spread(b)]
        for (t, ref), a, b in zip(REFERENCE.items(), losses, exact, strict=True)
    ]
    text = table(["step", "loss: reference", "ours", "exact match: reference", "ours"], rows)
    tables = [thirds(over).loss for over in overs]
    for i, feature in enumerate(LOOKS["binary-addition"].features):
        rows = []
        for t, ref in REFERENCE.items():
            found = [x.sel(feature=feature, step=t) for x in tables]
            rows.append(
                [str(t), ref[2 + i], *(spread([float(x.sel(third=n)) for x in found], geometric) for n in THIRDS)]
            )
        text += "\n" + table([f"{feature}, step", "reference", *THIRDS], rows)
    return text


def story(runs: Sequence[pl.Run], look: Look) -> str:
    """Plateau and drop of each seed."""
    rows = []
    for seed, run in enumerate(runs):
        loss, (steps, level), flat = run.metrics.loss, plateau_of(run, look), flattest(run.metrics.loss)
        drop = None if np.isnan(level) else pl.find_plateau(run, level=level, floor=0.0).drop
        stretch = "none" if flat is None else f"{flat.start} to {flat.end} at {flat.level:.3f}, {flat.sharpness:.2f}"
        near = f"{steps[0]} to {steps[-1]}" if steps else "none"
        end = [f"{loss.iloc[-1]:.4f}", f"{run.metrics.exact_match.iloc[-1]:.3f}"]
        rows.append([str(seed), f"{level:.3f}", near, stretch, "none" if drop is None else str(drop), *end])
    return table(
        ["seed", "level", "probed plateau steps", "flattest stretch, sharpness", "drop", "last loss", "exact match"],
        rows,
    )


def falling(runs: Sequence[pl.Run]) -> str:
    """Loss at a few steps, and exact match at the last."""
    rows = [[*(f"{x:.3f}" for x in run.metrics.loss), f"{run.metrics.exact_match.iloc[-1]:.3f}"] for run in runs]
    return table([*map(str, runs[0].metrics.index), "exact match"], rows)


def verdicts(runs: Sequence[pl.Run], overs: Sequence[xr.Dataset], look: Look) -> str:
    """Of each feature and seed: the rule of `quiet_or_loud` at the last plateau step, and after the drop."""
    rows = []
    for feature in look.features:
        for seed, (run, over) in enumerate(zip(runs, overs, strict=True)):
            steps = plateau_of(run, look)[0]
            if not steps:
                rows.append([feature, str(seed), "no plateau step", "", "", ""])
                continue
            found = pl.probing.quiet_or_loud(over, feature, plateau_steps=steps, after_step=look.steps[-1])
            cells = [ratios(found.ratios.isel(step=at)) for at in (-2, -1)]  # the last plateau step, and after
            last = f"{steps[-1]} ({run.metrics.loss[steps[-1]]:.3f})"
            rows.append([feature, str(seed), last, *cells, f"{found.verdict} ({found.agreement:.0%})"])
    return table(["feature", "seed", "last plateau step (loss)", "ratios there", "ratios at the end", "verdict"], rows)


def map_checkpoints(run: pl.Run, over: xr.Dataset, look: Look) -> str:
    """Loss and what probes lose beside those on the untrained network, first/middle/last third, step by step."""
    by_third, rows = thirds(over), []
    for step in over.step.values:
        cells = [f"{run.metrics.loss[step]:.3f}", f"{run.metrics.exact_match[step]:.2f}"]
        for feature in look.features:
            at = by_third.sel(feature=feature, step=step)
            cells.append("/".join("-" if np.isnan(r) else f"{r:.2f}" for r in (at.loss / at.baseline).values))
        rows.append([str(step), *cells])
    return table(["step", "loss", "exact match", *look.features], rows)


def ratios(at: xr.Dataset) -> str:
    """Three thirds with intervals."""
    each = zip(*(at[name].values for name in ("ratio", "low", "high")), strict=True)
    return ", ".join(f"{r:.2f} [{a:.2f}, {b:.2f}]" for r, a, b in each)


# Ablations.


def ablated(run: pl.Run, feature: str, method: str, site: str) -> Ablation:
    """An ablation of the last model; `site` is "best", "best below" the last layer, or a layer."""

    def make() -> Ablation:
        model, train = run.model(run.steps[-1]), sequences(run)
        if site in ("best", "best below"):
            found = pl.probe(model, train, feature, C=100.0, fractions=SPLIT, shuffled=False)
            below = model.cfg.n_layers - 1 if "below" in site else None
            where = {"sites": Directions.of(found, below).sites}  # and all that is removed is fitted to the same
        else:
            where = {"sites": f"blocks.{site}.hook_resid_post"}
        options = {"draws": DRAWS, "metrics": ["exact_match"], "progress": False}
        test = run.task.sample(256, seed=3)
        return pl.ablate_feature(model, test, feature, method=method, train=train, **where, **options)

    return kept(run.path.with_suffix(f".{feature}-{method}-{site.replace(' ', '-')}"), make)


EDITS = (
    ("hyperplane", "best"),
    ("hyperplane", "best below"),
    ("mean_difference", "0"),
    ("mean_difference", "1"),
)


def ablations(runs: Sequence[pl.Run], look: Look, edits: Sequence[tuple[str, str]]) -> str:
    """Exact match without a feature, and with each control: means over seeds, and the least and greatest."""
    rows = []
    for feature in look.features:
        for method, site in edits:
            tables = [ablated(run, feature, method, site).table.loc["exact_match"] for run in runs]
            own = spread([t.loc["intact", "mean"] + t.loc["intact", "difference"] for t in tables])
            others = [spread([t.loc[control, "mean"] for t in tables]) for control in CONTROLS]
            rows.append([feature, f"{method}, {site}", own, *others])
    return table(["feature", "edit, layer", "without it", *CONTROLS], rows)


def differences(runs: Sequence[pl.Run], feature: str, edit: tuple[str, str]) -> str:
    """Of one edit: exact match, and how far it lies from each control, seed by seed, with 95 % intervals."""
    rows = []
    for seed, run in enumerate(runs):
        at = ablated(run, feature, *edit).table.loc["exact_match"]
        gaps = [f"{at.difference[c]:+.3f} [{at.low[c]:+.3f}, {at.high[c]:+.3f}]" for c in CONTROLS]
        before = at.loc["intact", "mean"]
        rows.append([str(seed), f"{before:.3f}", f"{before + at.loc['intact', 'difference']:.3f}", *gaps])
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


def shares(run: pl.Run, feature: str, site: str = "blocks.1.hook_resid_post") -> str:
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


def of_tokens(run: pl.Run, feature: str) -> str:
    """Test loss of the probe that is given the visible tokens alone."""
    at = pl.probing.probe_tokens(sequences(run), feature, C=100.0, fractions=SPLIT).thirds()
    return "/".join(f"{x:.4f}" for x in at.loss.values)


def draw(run: pl.Run, over: xr.Dataset, look: Look, folder: Path) -> None:
    """Probes of the first feature over training, and the ablation in which the controls disagree."""
    from plateaulens.papers.abrupt_learning.task_figures import picture

    plateau = pl.find_plateau(run, level=look.level, floor=0.0)
    figures = {
        "quiet.png": pl.plots.probes(over, run, plateau, feature=look.features[0]),
        "quiet-ablation.png": pl.plots.ablation(ablated(run, look.features[0], *EDITS[-1])),
    }
    for name, figure in figures.items():
        picture(figure.update_layout(paper_bgcolor="white", width=900), folder / name)


def main() -> None:
    """Train, probe and ablate what is missing; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(LOOKS), action="append")
    parser.add_argument("--figures", type=Path, help="the folder for figures, such as docs")
    asked = parser.parse_args()
    for name in asked.only or LOOKS:
        look = LOOKS[name]
        runs = [trained(asked.folder, name, seed) for seed in range(asked.seeds)]
        say(f"## {name}: {SMALL_RECIPES[name].task!r}\n")
        if not look.features:
            say(falling(runs))
            continue
        overs = [probed(run, name) for run in runs]
        for text in (story(runs, look), verdicts(runs, overs, look), map_checkpoints(runs[0], overs[0], look)):
            say(text)
        if name == "binary-addition":
            say(beside_reference(runs, overs))
            say(ablations(runs, look, EDITS))
            for feature in look.features:
                say(taken(runs, feature, EDITS))
                say(f"{feature}: share of the variance: {shares(runs[0], feature)}")
                say(f"{feature}: loss of a probe of the tokens: {of_tokens(runs[0], feature)}")
            say(differences(runs, look.features[0], EDITS[-1]))
            say(str(ablated(runs[0], look.features[0], *EDITS[-1])))
            if asked.figures:
                draw(runs[0], overs[0], look, asked.figures)


def say(text: str) -> None:
    """A paragraph, at once."""
    sys.stdout.write(text.rstrip() + "\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
