"""Tasks with features from a shell: train, probe, ablate, and what a run's report says of it."""

import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner, Result

import plateaulens as pl
from plateaulens.cli import main
from plateaulens.probing.ablation import Ablation, OffsetProbes
from plateaulens.probing.fitting import fit_logistic
from plateaulens.report.probe_results import _probes, ablation_text, probes_text, results

TINY = "--d-model 16 --layers 2 --batch-size 16 --eval-size 16 --every 10 --save-every 20".split()
PROBE = "--n 200 --C 100".split()
ABLATE = "--train 200 --n 16 --draws 2".split()


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def good(*words: str) -> Result:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def addition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "addition"
    good(*"train binary-addition --bits 6 --steps 60".split(), *TINY, "--out", str(folder))
    return folder


@pytest.fixture(scope="module")
def bfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "bfs"
    good(*"train bfs --nodes 5 --steps 40".split(), *TINY, "--out", str(folder))
    return folder


# Training.


def test_warmup_of_binary_addition_follows_the_steps(addition: Path):
    run = pl.Run(addition)
    assert run.task == pl.tasks.BinaryAddition(bits=6) and run.steps == [0, 20, 40, 60]
    assert (run.train_config.warmup, run.train_config.lr_end, run.train_config.optimizer) == (6, 0.1, "adamw")
    assert "final exact match" in (addition / "report.html").read_text()


def test_given_schedule_options_override_those_of_the_steps(tmp_path: Path):
    words = "train binary-addition --bits 4 --steps 10 --warmup 3 --batch-size 8 --lr 0.01 --d-model 8 --layers 1"
    words += " --eval-size 4"
    good(*words.split(), "--out", str(tmp_path / "run"))
    train = pl.Run(tmp_path / "run").train_config
    assert (train.steps, train.warmup, train.batch_size, train.lr) == (10, 3, 8, 0.01)


def test_answers_of_unequal_length_train_resume_and_report(bfs: Path):
    before = (bfs / "metrics.jsonl").read_bytes()
    good("resume", str(bfs))
    assert (bfs / "metrics.jsonl").read_bytes() == before
    (bfs / "report.html").unlink()
    assert str(bfs / "report.html") in good("report", str(bfs)).output


# Probing.


def test_probe_stores_what_probe_checkpoints_returns(addition: Path):
    said = good("probe", str(addition), "--feature", "carry", "--steps", "0,40-60", *PROBE).output
    run = pl.Run(addition)
    batch = run.task.sample(200, seed=2)
    kept = xr.load_dataset(addition / "probes" / "carry.nc")
    again = pl.probe_checkpoints(
        run, batch, "carry", steps=[0, 40, 60], C=(100.0,), shuffled=False, seed=2, progress=False
    )
    xr.testing.assert_allclose(kept, again)
    lines = [line.split() for line in said.splitlines()]
    table = pl.probing.thirds(again)
    assert ["step", "40", f"{run.metrics.loss[40]:.4f}", *(f"{x:.4f}" for x in table.loss.sel(step=40).values)] in lines
    assert ["untrained", *(f"{x:.4f}" for x in table.baseline[0].values)] in lines
    tokens = pl.probing.probe_tokens(batch, "carry", C=(100.0,), seed=2).thirds().loss.values
    np.testing.assert_allclose(kept.attrs["tokens"], tokens)
    assert "no verdict: the loss" in said and said.strip().endswith(str(addition / "probes" / "carry.html"))


def test_probe_takes_several_features_and_a_plateau_by_hand(bfs: Path):
    words = ("--feature", "queue", "--feature", "adjacency_list", "--plateau", "10-20", "--no-tokens")
    said = good("probe", str(bfs), *words, *PROBE).output
    for feature in ("queue", "adjacency_list"):
        page = (bfs / "probes" / f"{feature}.html").read_text()
        assert f"{feature}: " in said and f"{feature}: " in page and "loss / baseline" in page
        attrs = xr.load_dataset(bfs / "probes" / f"{feature}.nc").attrs
        assert attrs["plateau"].tolist() == [10, 20] and "tokens" not in attrs
    assert "tokens alone" not in said


def test_a_feature_of_numbers_is_probed_in_squared_errors(tmp_path: Path):
    run = tmp_path / "run"
    good(*"train activities --n 4 --steps 10".split(), *TINY, "--out", str(run))
    assert "(squared error)" in good("probe", str(run), "--feature", "retrieve_start_times", *PROBE).output
    result = call("ablate", str(run), "--feature", "retrieve_start_times", *ABLATE)
    assert result.exit_code == 2 and "retrieve_start_times is integer; --method mean_difference" in result.stderr
    good("ablate", str(run), "--feature", "retrieve_start_times", "--method", "mean_difference", *ABLATE)


# Ablating.


def test_ablate_keeps_what_ablate_feature_finds(addition: Path):
    said = good("ablate", str(addition), "--feature", "carry", "--step", "40", "--C", "3", *ABLATE).output
    run = pl.Run(addition)
    model, train, test = run.model(40), run.task.sample(200, seed=2), run.task.sample(16, seed=3)
    where = OffsetProbes.best(pl.probe(model, train, "carry", C=3.0, shuffled=False, seed=2)).sites
    fit = partial(fit_logistic, C=3.0)  # of all of `train`, as those of shuffled labels are
    direct = pl.ablate_feature(model, test, "carry", sites=where, train=train, fit=fit, draws=2, seed=2, progress=False)
    kept = Ablation.from_dataset(xr.load_dataset(addition / "ablations" / "carry-hyperplane-40.nc"))
    pd.testing.assert_frame_equal(kept.table, direct.table, check_index_type=False)
    xr.testing.assert_allclose(kept.values, direct.values)
    assert (kept.sites, kept.feature, kept.method) == (direct.sites, "carry", "hyperplane")
    assert repr(kept) == repr(direct) and repr(direct) in said and ablation_text(direct.table) in said
    assert said.strip().endswith(str(addition / "ablations" / "carry-hyperplane-40.html"))


def test_ablate_at_a_site_and_below_a_layer(addition: Path):
    site = "blocks.0.hook_resid_post"
    words = ("--feature", "carry", "--control", "gaussian", *ABLATE)
    good("ablate", str(addition), "--method", "mean_difference", "--site", site, *words)
    good("ablate", str(addition), "--method", "nullspace", "--below", "1", "--k", "2", *words)
    for method in ("mean_difference", "nullspace"):
        kept = Ablation.from_dataset(xr.load_dataset(addition / "ablations" / f"carry-{method}-60.nc"))
        assert set(kept.sites) == {site} and kept.values.control.values.tolist() == ["gaussian"]


# What a run's report shows.


def test_report_shows_what_was_kept(addition: Path):
    good("probe", str(addition), "--feature", "carry", *PROBE)
    good("ablate", str(addition), "--feature", "carry", *ABLATE)
    good("report", str(addition))
    html, kept = (addition / "report.html").read_text(), results(pl.Run(addition))
    assert {"probes-carry", "ablations-carry-hyperplane-60"} <= {result.name for result in kept}
    for result in kept:
        assert f'id="{result.name}"' in html and f'"{result.name}": {{' in html
        assert result.conclusion.splitlines()[0].replace(">", "&gt;") in html
        page = next(addition.glob(f"{result.name.partition('-')[0]}/{result.name.partition('-')[2]}.html")).read_text()
        assert f'id="{result.name}"' in page and result.title in page


def test_half_a_file_is_never_taken_for_a_whole_one(addition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good("probe", str(addition), "--feature", "first_operand", *PROBE)
    path = addition / "probes" / "first_operand.nc"
    whole = path.read_bytes()

    def crash(self, target, **options):
        Path(target).write_bytes(whole[:100])
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(xr.Dataset, "to_netcdf", crash)
        result = call("probe", str(addition), "--feature", "first_operand", *PROBE)
    assert result.exit_code == 2 and "no space left" in result.stderr
    assert path.read_bytes() == whole and results(pl.Run(addition))
    path.write_bytes(whole[:100])
    damaged = call("report", str(addition))
    assert damaged.exit_code == 2 and "first_operand.nc is damaged" in damaged.stderr
    assert len(damaged.stderr.strip().splitlines()) == 1
    path.unlink()


# Bad input.

BAD = {
    "no feature said": (["probe", "RUN"], "say which feature: --feature first_operand or carry"),
    "unknown feature": (["probe", "RUN", "--feature", "cary"], "unknown feature 'cary'; did you mean 'carry'?"),
    "one of two unknown": (["probe", "RUN", "--feature", "carry", "--feature", "x"], "unknown feature 'x'"),
    "step not saved": (
        ["probe", "RUN", "--feature", "carry", "--steps", "0,50"],
        "no checkpoint of step 50; there are",
    ),
    "steps in words": (["probe", "RUN", "--feature", "carry", "--steps", "all"], "numbers and ranges"),
    "plateau backwards": (["probe", "RUN", "--feature", "carry", "--plateau", "20-10"], "got '20-10'"),
    "no such site": (["probe", "RUN", "--feature", "carry", "--site", "blocks.7.hook_resid_post"], "blocks.7"),
    "not a run": (["probe", ".", "--feature", "carry"], "is not a run"),
    "ablate: no feature said": (["ablate", "RUN"], "say which feature"),
    "ablate: unknown feature": (["ablate", "RUN", "--feature", "cary"], "did you mean 'carry'?"),
    "ablate: method": (["ablate", "RUN", "--feature", "carry", "--method", "hyperplan"], "did you mean 'hyperplane'?"),
    "ablate: control": (["ablate", "RUN", "--feature", "carry", "--control", "gausian"], "did you mean 'gaussian'?"),
    "ablate: step": (["ablate", "RUN", "--feature", "carry", "--step", "50"], "no checkpoint of step 50"),
    "ablate: below nothing": (
        ["ablate", "RUN", "--feature", "carry", *ABLATE, "--below", "0"],
        "no probe is of a layer below 0",
    ),
    "ablate: two choices": (["ablate", "RUN", "--feature", "carry", "--below", "1", "--site", "a"], "give one of them"),
    "ablate: not a run": (["ablate", "nowhere", "--feature", "carry"], "is not a run"),
    "ablate: several sites": (
        ["ablate", "RUN", "--feature", "carry", *ABLATE, "--site", "blocks.*.hook_resid_post"],
        "unknown hook 'blocks.*.hook_resid_post'; did you mean 'blocks.",
    ),
    "ablate: a state for each head": (
        ["ablate", "RUN", "--feature", "carry", *ABLATE, "--site", "blocks.0.attn.hook_z"],
        "directions are of one state a position, and blocks.0.attn.hook_z is [1, ",
    ),
    "ablate: no penalty": (["ablate", "RUN", "--feature", "carry", *ABLATE, "--C", "inf"], "--C inf leaves"),
}
RANGES = {
    "probe": ("--n -5", "--n 5", "--n 19", "--C 0", "--C -1", "--C nan", "--seed -1"),
    "ablate": ("--n 0", "--train 3", "--C 0", "--C -1", "--C nan", "--draws 0", "--k 0", "--seed -1"),
}


@pytest.mark.parametrize("words, hint", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_exit_2(words, hint, addition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in addition.rglob("*")}
    result = call(*(str(addition) if word == "RUN" else word for word in words))
    doing = ("edit/s", "step/s", "fitting the directions")
    lines = [line for line in result.stderr.splitlines() if not any(word in line for word in doing)]
    assert result.exit_code == 2 and len(lines) == 1 and hint in lines[0], result.output
    assert {p: p.stat().st_mtime_ns for p in addition.rglob("*")} == before


@pytest.mark.parametrize("verb, words", [(verb, words) for verb, each in RANGES.items() for words in each])
def test_numbers_out_of_range_are_named_in_one_line(verb: str, words: str, addition: Path):
    name, value = words.split()
    kept = [verb, str(addition), "--feature", "carry", *(PROBE if verb == "probe" else ABLATE)]
    result = call(*kept, name, value)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(f"plateaulens: Invalid value for '{name}': {value}")
    assert len(result.stderr.splitlines()) == 1


# Interrupts.


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, feature: str):
    """Ctrl-C in a function of the package, once it is asked of a feature."""
    module = pl if hasattr(pl, name) else pl.probing
    own = getattr(module, name)

    def stopped(first, *rest, **options):
        if feature in rest:
            raise KeyboardInterrupt
        return own(first, *rest, **options)

    monkeypatch.setattr(module, name, stopped)


@pytest.mark.parametrize("name", ["probe_checkpoints", "probe_tokens"])
def test_a_stopped_probe_says_what_was_kept(name: str, addition: Path, monkeypatch: pytest.MonkeyPatch):
    for path in (addition / "probes").glob("*"):
        path.unlink()
    with monkeypatch.context() as patched:
        stop_at(patched, name, "first_operand")
        words = ("--feature", "carry", "--feature", "first_operand", "--tokens", *PROBE)
        result = call("probe", str(addition), *words)
    assert result.exit_code == 130
    said = f"stopped; kept in {addition / 'probes'}: carry; to start anew: first_operand"
    assert result.stderr.splitlines()[-1] == said
    assert {path.name for path in (addition / "probes").iterdir()} == {"carry.nc", "carry.html"}
    assert "probing the visible tokens for carry" in result.stderr
    with monkeypatch.context() as patched:
        stop_at(patched, name, "carry")
        result = call("probe", str(addition), "--feature", "carry", *PROBE)
    assert result.stderr.splitlines()[-1] == f"stopped; kept in {addition / 'probes'}: nothing; to start anew: carry"


def test_a_probe_stopped_amid_its_writing_is_kept(addition: Path, monkeypatch: pytest.MonkeyPatch):
    own = xr.Dataset.to_netcdf

    def stopped(self, target, **options):
        own(self, target, **options)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(xr.Dataset, "to_netcdf", stopped)
        result = call("probe", str(addition), "--feature", "carry", *PROBE)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"stopped; kept in {addition / 'probes'}: carry; to start anew: nothing"
    assert (addition / "probes" / "carry.html").is_file()


def test_a_stopped_ablation_keeps_nothing(addition: Path, monkeypatch: pytest.MonkeyPatch):
    before = sorted((addition / "ablations").glob("*"))
    with monkeypatch.context() as patched:
        stop_at(patched, "ablate_feature", "carry")
        result = call("ablate", str(addition), "--feature", "carry", "--step", "20", *ABLATE)
    assert result.exit_code == 130 and result.stderr.splitlines()[-1] == "stopped; nothing of it was kept"
    assert "fitting the directions of carry to 200 sequences" in result.stderr
    assert sorted((addition / "ablations").glob("*")) == before


@pytest.mark.parametrize("verb", ["probe", "ablate"])
def test_runs_without_features_or_trained_checkpoints_are_one_line(verb: str, tmp_path: Path):
    for task, hint in (
        (pl.tasks.MovingWindowSum(n=4, p=5), "names no features"),
        (pl.tasks.BinaryAddition(bits=4), "only [0]"),
    ):
        model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=8))
        run = pl.Run.create(tmp_path / type(task).__name__, task=task, model=model, train=pl.TrainConfig(steps=2))
        run.save(0, model)
        result = call(verb, str(run.path), "--feature", "carry", *(PROBE if verb == "probe" else ABLATE))
        assert result.exit_code == 2 and hint in result.stderr and len(result.stderr.splitlines()) == 1, result.output


@pytest.mark.parametrize("verb", ["probe", "ablate"])
def test_help_has_an_example(verb: str):
    assert f"Example: plateaulens {verb} runs/addition" in " ".join(good(verb, "--help").output.split())


# Words.


def over(ratios: dict[int, float], **attrs) -> xr.Dataset:
    """Probes of one site and three offsets whose losses are `ratios` of the untrained network's, on any test."""
    axes, shape = ("step", "site", "offset"), (len(ratios), 1, 3)
    ones = np.ones(shape)
    losses = ones * np.array(list(ratios.values()))[:, None, None]
    tests = {"losses": losses[..., None].repeat(5, -1), "baseline_losses": ones[..., None].repeat(5, -1)}
    found = {"loss": losses, "train_loss": losses, "baseline": ones}
    data = xr.Dataset({name: (axes, value) for name, value in found.items()})
    data = data.assign({name: ((*axes, "test"), value) for name, value in tests.items()}).assign(offsets=3)
    return data.assign_coords(step=list(ratios)).assign_attrs(feature="carry", **attrs)


def recorded(losses: dict[int, float], known: bool = True) -> SimpleNamespace:
    """A run with a level of 1 and a floor of 0."""
    metrics = pd.DataFrame({"loss": losses.values()}, index=list(losses))
    levels = {"loss_plateau": lambda: 1.0 if known else None, "loss_floor": lambda: 0.0}
    return SimpleNamespace(metrics=metrics, task=SimpleNamespace(**levels))


DROPS = {0: 5.0, 5: 1.2, 10: 1.0, 15: 1.04, 20: 1.0, 30: 0.9, 40: 0.4, 50: 0.1}
PASSES = {0: 5.0, 10: 1.5, 20: 1.01, 30: 0.99, 40: 0.4, 50: 0.1}  # two measurements at its level
TWICE = dict(zip(range(0, 100, 10), (5.0, 1.0, 1.0, 1.0, 1.2, 1.0, 1.0, 1.0, 0.4, 0.1), strict=True))
DIPS = dict(sorted({**DROPS, 22: 0.3, 24: 1.0, 26: 1.0, 28: 1.0}.items()))  # a moment below the middle is the drop
FALLS = {0: 1.0, 10: 0.9, 20: 0.5, 50: 0.1}
JUDGED = {
    "quiet": (FALLS, DROPS, {}, "carry: quiet"),
    "loud": ({0: 1.0, 10: 0.95, 20: 0.9, 50: 0.1}, DROPS, {}, "carry: loud"),
    "what fell after the plateau does not count": ({10: 0.95, 20: 0.9, 30: 0.2, 50: 0.1}, DROPS, {}, "carry: loud"),
    "no drop": (FALLS, {k: max(v, 0.9) for k, v in DROPS.items()}, {}, "the loss has not dropped (plateau 1.0000)"),
    "no plateau": (FALLS, {0: 5.0, 50: 4.0}, {}, "the loss never reaches its plateau (plateau 1.0000)"),
    "not probed there": ({0: 1.0, 50: 0.1}, DROPS, {}, "no probed step is on the plateau (steps 10 to 20)"),
    "not yet near": ({5: 0.5, 50: 0.1}, DROPS, {}, "no probed step is on the plateau (steps 10 to 20)"),
    "between two stretches": ({40: 0.5, 90: 0.1}, TWICE, {}, "is on the plateau (steps 10 to 30, 50 to 70)"),
    "between two measurements": ({12: 0.5, 50: 0.1}, DROPS, {}, "carry: quiet"),
    "runs through": (FALLS, PASSES, {}, "no verdict: the loss passes through its plateau's level 1.0000"),
    "runs through, between": (FALLS, {0: 5.0, 10: 1.5, 20: 0.9, 30: 0.4, 40: 0.1, 50: 0.1}, {}, "passes through its"),
    "runs through, by hand": (FALLS, PASSES, {"plateau": [10, 20]}, "carry: quiet"),
    "after a dip": ({10: 0.95, 24: 0.2, 50: 0.1}, DIPS, {}, "carry: loud"),
    "nor after": ({0: 1.0, 20: 0.1}, DROPS, {}, "from the drop on (step 40)"),
    "by hand": (FALLS, {}, {"plateau": [10, 20]}, "carry: quiet"),
    "by hand, another": (FALLS, DROPS, {"plateau": [10, 10]}, "carry: loud"),
    "not known": (FALLS, None, {}, "the level of the plateau is not known for this task; give its steps: --plateau"),
}


@pytest.mark.parametrize("ratios, losses, attrs, said", JUDGED.values(), ids=JUDGED.keys())
def test_verdict_is_on_the_plateau_of_the_run(ratios, losses, attrs, said):
    run = recorded(losses or {0: 1.0}, known=losses is not None)
    assert said in probes_text(run, over(ratios, **attrs))


@pytest.mark.parametrize("case, shaded", {"quiet": True, "runs through": False, "runs through, by hand": True}.items())
def test_figure_shades_no_plateau_without_a_verdict(case, shaded):
    ratios, losses, attrs, _ = JUDGED[case]
    figure = _probes(recorded(losses), over(ratios, **attrs, site="x"))[0]
    assert any(shape.type == "rect" for shape in figure.layout.shapes) == shaded


CONCLUDED = {
    "nothing": ({"intact": (-0.1, 0.05), "gaussian": (-0.1, 0.05)}, "does not change"),
    "no controls": ({"intact": (-0.3, -0.1)}, "without controls this is no evidence"),
    "every control": ({"intact": (-0.3, -0.1), "gaussian": (-0.3, -0.1)}, "further than with every control (gaussian)"),
    "some": (
        {"intact": (-0.3, -0.1), "gaussian": (-0.3, -0.1), "variance": (-0.1, 0.1)},
        "further than with gaussian but no further than with variance",
    ),
    "none": ({"intact": (-0.3, -0.1), "variance": (0.1, 0.2)}, ", no further than with variance"),
    "better": ({"intact": (0.1, 0.3), "gaussian": (0.1, 0.3)}, "further than with every control"),
    "less better": ({"intact": (0.1, 0.3), "gaussian": (-0.3, -0.1)}, ", no further than with gaussian"),
}
LESS = {other: (-0.3, -0.1) for other in ("intact", "gaussian", "shuffled")}


def compared(intervals: dict[str, tuple[float, float]], of: str = "exact_match", mean: float = 0.5, **more):
    """The rows of one measurement in `Ablation.table`."""
    index = pd.MultiIndex.from_product([[of], intervals], names=["measurement", "with"])
    rows = [[mean, (low + high) / 2, low, high, 0.0, np.nan, np.nan] for low, high in intervals.values()]
    columns = ["mean", "difference", "low", "high", "as_far", "overlap", "variance"]
    return pd.DataFrame(rows, index, columns).assign(**more)


@pytest.mark.parametrize("intervals, said", CONCLUDED.values(), ids=CONCLUDED.keys())
def test_conclusion_of_an_ablation_goes_by_the_intervals(intervals, said):
    assert said in ablation_text(compared(intervals))


def test_where_nothing_could_fall_the_loss_is_judged():
    floor = compared({"intact": (0.0, 0.0), "gaussian": (0.0, 0.0)}, mean=0.0)
    assert ablation_text(floor) == "exact_match is 0 to begin with; look at the loss, which was not measured."
    rises = compared({"intact": (0.1, 0.3), "gaussian": (0.1, 0.3)}, "loss")
    said = ablation_text(pd.concat([floor, rises]))
    assert said.startswith("exact_match is 0 to begin with; look at the loss: loss changes by +0.200")
    assert said.endswith("further than with every control (gaussian).")
    assert "is 0" not in ablation_text(pd.concat([compared(LESS), rises]))


def test_a_control_that_shares_the_directions_is_no_comparison():
    said = ablation_text(compared(LESS, overlap=[np.nan, 0.02, 0.69]))
    assert "further than with every other control (gaussian). shuffled shares 69% of the directions" in said
    said = ablation_text(compared({**LESS, "shuffled": (-0.1, 0.1)}, overlap=[np.nan, 0.02, 0.31]))
    assert "no further" not in said and "shuffled shares 31% of the directions: no comparison." in said
    said = ablation_text(compared(LESS, overlap=[np.nan, 0.5, 0.69]))
    assert "without controls this is no evidence for the feature. gaussian shares 50% of" in said and "69%" in said
    assert "no comparison" not in ablation_text(compared(LESS, overlap=[np.nan, 0.02, 0.3]))


def test_how_much_variance_the_controls_remove_is_said():
    table = compared(LESS, overlap=[np.nan, 0.02, 0.69], variance=[np.nan, 0.49, 1.0])
    assert "control (gaussian; these remove up to 49% as much variance). shuffled shares" in ablation_text(table)
    assert "variance" not in ablation_text(table.assign(variance=np.nan))


def test_the_page_of_an_ablation_without_exact_matches_shows_the_loss(addition: Path):
    good("ablate", str(addition), "--feature", "carry", *ABLATE)
    (kept,) = (result for result in results(pl.Run(addition)) if result.name == "ablations-carry-hyperplane-60")
    assert kept.conclusion.startswith("exact_match is 0 to begin with; look at the loss: loss ")
    assert kept.figure.layout.xaxis.title.text == "loss (nats)"
