"""The experiment of docs/quiet.md: its rules on known curves, a level by counting, its tables on a tiny run."""

import itertools
from dataclasses import replace
from math import log

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import plateaulens as pl
from plateaulens.analysis.plateau import PlateauRule
from plateaulens.models.config import transformer_pp
from plateaulens.papers.quiet_features import experiment as script, recipes as papers


@pytest.mark.parametrize("bits, groups", [(9, 3), (8, 4), (15, 5), (4, 1)])
def test_count_only_loss_is_that_of_all_inputs(bits, groups):
    task = pl.tasks.MajorityOfMajorities(bits=bits, groups=groups)
    votes: dict[int, list[int]] = {}
    for row in itertools.product((0, 1), repeat=bits):
        sums = [sum(part) for part in np.split(np.array(row), groups)]
        won = sum(2 * ones > bits // groups for ones in sums)
        votes.setdefault(sum(row), []).append(int(2 * won > groups))
    entropy = sum(len(v) * sum(-p * log(p) for p in (np.mean(v), 1 - np.mean(v)) if p) for v in votes.values())
    assert script.count_only_loss(bits, groups) == pytest.approx(entropy / 2**bits / 3)
    assert script.count_only_loss(bits, groups) < task.loss_plateau()


def test_a_flat_stretch_is_found_and_a_decay_has_none():
    steps = np.arange(0, 400, 2)
    decay = pd.Series(np.exp(-steps / 200), index=steps)
    assert script.flattest_stretch(decay).sharpness == pytest.approx(log(1 / 0.95) / log(0.95 / 0.5), abs=0.05)
    curve = pd.Series(
        np.interp(steps, [0, 120, 150, 250, 270, 380, 400], [2.1, 2.0, 0.6, 0.59, 0.01, 0.01, 0.001]), index=steps
    )
    flat = script.flattest_stretch(curve)
    assert (flat.start, flat.end) == (150, 250) and flat.half == 260 and flat.sharpness == 10
    assert flat.level == pytest.approx(0.595)
    assert script.flattest_stretch(pd.Series(0.6, index=steps)) is None


def test_tables_are_of_the_runs_and_a_second_call_only_reads(monkeypatch, tmp_path, capsys):
    """A tiny addition is trained, probed and ablated in the first call."""
    name, task = "binary-addition", pl.tasks.BinaryAddition(bits=3)
    tiny = replace(papers.SMALL_RECIPES[name], task=task, model=transformer_pp(8, 2), train=papers.schedule(4, 1e-2, 8))
    monkeypatch.setitem(script.SMALL_RECIPES, name, tiny)
    monkeypatch.setitem(
        script.EXPERIMENTS, name, script.ExperimentConfig((0, 2, 4), ("carry",), level=1.7, every=2, eval_batch=16)
    )
    monkeypatch.setattr(script, "REFERENCE", {0: ("2.2", "0", ".3/.4/.4", ""), 4: ("2.1", "0", ".1/.1/.1", "")})
    monkeypatch.setattr(script, "EDITS", (("hyperplane", "best"), ("mean_difference", "0")))
    monkeypatch.setattr(script, "DRAWS", 2)
    monkeypatch.setattr(script, "RULE", PlateauRule(tolerance=10.0, consecutive=1))
    monkeypatch.setattr(script, "sequences", lambda run: run.task.sample(120, seed=2))
    monkeypatch.setattr("sys.argv", ["experiment", str(tmp_path), "--seeds", "1", "--only", name])
    script.main()
    first = capsys.readouterr().out
    run = pl.Run(tmp_path / f"{name}-0")
    assert run.steps == [0, 2, 4] and "| 4 | 2.1 | {0:.3f} [{0:.3f}, {0:.3f}] |".format(run.metrics.loss[4]) in first
    found = pl.probe(run.model(0), script.sequences(run), "carry", C=100.0, fractions=script.SPLIT, shuffled=False)
    kept = xr.load_dataset(run.path.with_suffix(".carry.probes.nc"))
    assert kept.loss.sel(feature="carry", step=0).values == pytest.approx(found.table.loss.values, rel=1e-3)
    monkeypatch.setattr(pl, "probe_checkpoints", None)
    monkeypatch.setattr(pl, "ablate_feature", None)
    script.main()
    assert capsys.readouterr().out == first
